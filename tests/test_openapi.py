"""The description of the routes, and the real service held against it."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app import __version__
from app.protocol.feeds import FEEDS, REQUIRED
from app.protocol.openapi import document
from app.protocol.problems import ALL
from tests.conftest import TOKEN, Shop
from tests.test_single_file import OTHERS

CHECKS = (
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
)


DOCUMENT = document(__version__)
described = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture
def full(catalog: Shop) -> Shop:
    """A shop with every feed, and more products than a page holds."""
    catalog.execute("insert into {s}.products (id) select generate_series(1, 60)")
    catalog.execute(OTHERS)
    return catalog


@described.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_the_answer_is_as_documented(case: Any, full: Shop) -> None:
    if "store" in case.path_parameters and len(case.path_parameters["store"]) % 4:
        case.path_parameters["store"] = full.name
    # Whether a token is good is not what is tried here.
    token = {"X-Clerk-Authorization": f"Bearer {TOKEN}"}
    # A service whose feeds are not all there says 503 itself, as it should.
    left_out = [checks.not_a_server_error] if case.path == "/-/readyz" else []
    case.call_and_validate(base_url=full.service.url, headers=token, checks=CHECKS, excluded_checks=left_out)


def test_the_description_follows_the_code(shop: Shop) -> None:
    answer = shop.service.get("/-/openapi.json", token=None)
    said = answer.json
    assert said == json.loads(json.dumps(DOCUMENT))
    assert (answer.status, answer.headers["Content-Type"], said["openapi"]) == (200, "application/json", "3.1.0")
    for feed in FEEDS:
        content = said["paths"][f"/{{store}}/{feed}.json"]["get"]["responses"]["200"]["content"]
        name = content["application/json"]["schema"]["items"]["$ref"].rpartition("/")[2]
        assert tuple(said["components"]["schemas"][name]["required"]) == REQUIRED[feed]
        statuses = set(said["paths"][f"/{{store}}/{feed}"]["get"]["responses"])
        assert statuses == {"200"} | {str(problem.status) for problem in ALL}
    limit = next(p for p in said["paths"]["/{store}/products"]["get"]["parameters"] if p["name"] == "limit")
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 1000)


def test_the_description_names_nothing_of_the_shop(shop: Shop) -> None:
    body = shop.service.get("/-/openapi.json", token=None).body.decode()
    for secret in (shop.name + '"', shop.public_key, shop.database.dsn, TOKEN):
        assert secret not in body
