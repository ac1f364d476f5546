"""The baseline of those who have Django: a product feed by Django REST framework and its LimitOffsetPagination.

As its documentation has it: an unmanaged model of the view, a ModelSerializer, a ListAPIView. Ours are the fields that
Clerk needs in another shape, an array in place of the pagination's envelope, and a verified token that is remembered.
Served by gunicorn with threads and lasting database connections; DATABASE_URL, VERIFY_URL and PUBLIC_KEY come from the
environment.
"""

import os
import time
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import django
import httpx
from django.conf import settings

_TOKEN_SECONDS = 600.0
_dsn = urlsplit(os.environ["DATABASE_URL"])

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    SECRET_KEY="only for the bench",  # noqa: S106
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.postgres", "rest_framework"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _dsn.path.lstrip("/"),
            "USER": unquote(_dsn.username or ""),
            "PASSWORD": unquote(_dsn.password or ""),
            "HOST": _dsn.hostname or parse_qs(_dsn.query).get("host", [""])[0],
            "PORT": _dsn.port or parse_qs(_dsn.query).get("port", [""])[0],
            "CONN_MAX_AGE": None,
            "OPTIONS": {"options": "-c search_path=bench"},
        }
    },
    REST_FRAMEWORK={
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from django.contrib.postgres.fields import ArrayField  # noqa: E402 (Django wants to be set up first)
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import models  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import generics, pagination, permissions, serializers  # noqa: E402
from rest_framework.request import Request  # noqa: E402
from rest_framework.response import Response  # noqa: E402


class Product(models.Model):
    """The view that every server of the bench reads."""

    id = models.IntegerField(primary_key=True)
    sku = models.TextField()
    name = models.TextField()
    description = models.TextField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    list_price = models.DecimalField(max_digits=10, decimal_places=2, null=True)
    image = models.TextField()
    url = models.TextField()
    categories = ArrayField(models.IntegerField())
    brand = models.TextField()
    color_names = ArrayField(models.TextField())
    stock = models.IntegerField()
    on_sale = models.BooleanField()
    reviews_amount = models.IntegerField()
    reviews_avg = models.FloatField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        app_label = "contenttypes"
        managed = False
        db_table = "products"


class Seconds(serializers.Field):
    """A moment as unix seconds."""

    def to_representation(self, value: Any) -> int:
        return int(value.timestamp())


class ProductSerializer(serializers.ModelSerializer):
    """A product as Clerk reads it."""

    price = serializers.FloatField()
    list_price = serializers.FloatField()
    created_at = Seconds()

    class Meta:
        model = Product
        fields: ClassVar = [field.name for field in Product._meta.fields]  # noqa: SLF001 (Django's public API)

    def to_representation(self, instance: Product) -> dict[str, Any]:
        return {name: value for name, value in super().to_representation(instance).items() if value is not None}


class Pages(pagination.LimitOffsetPagination):
    """Django REST framework's own, answering an array."""

    default_limit = 25
    max_limit = 1000

    def get_paginated_response(self, data: Any) -> Response:
        return Response(data)


class TokenVerified(permissions.BasePermission):
    """Clerk's token is good, or was within the last minutes."""

    verifier = httpx.Client(timeout=5)
    verified: ClassVar[dict[str, float]] = {}

    def has_permission(self, request: Request, view: Any) -> bool:
        token = request.headers.get("X-Clerk-Authorization", "").removeprefix("Bearer ")
        if self.verified.get(token, 0.0) > time.monotonic():
            return True
        asked = {"token": token, "key": os.environ["PUBLIC_KEY"]}
        if self.verifier.post(os.environ["VERIFY_URL"], json=asked).json().get("status") != "ok":
            return False
        self.verified[token] = time.monotonic() + _TOKEN_SECONDS
        return True


class Feed(generics.ListAPIView):
    """The products, by limit and offset."""

    queryset = Product.objects.order_by("id")
    serializer_class = ProductSerializer
    pagination_class = Pages
    permission_classes = (TokenVerified,)


urlpatterns = [path("bench/products", Feed.as_view())]
application = get_wsgi_application()
