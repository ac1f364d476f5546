"""Cloudflare's published ranges: what `cloudflare` in trusted_proxies stands for."""

from datetime import date
from functools import cache
from importlib.resources import files
from ipaddress import IPv4Network, IPv6Network, ip_network

import msgspec

SOURCES = ("https://www.cloudflare.com/ips-v4", "https://www.cloudflare.com/ips-v6")
"""Where Cloudflare publishes them, a network a line."""


class Ranges(msgspec.Struct, frozen=True):
    """The networks Cloudflare's edge connects from, and when they were last changed by Cloudflare."""

    published: date
    networks: tuple[IPv4Network | IPv6Network, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    published: date
    networks: tuple[str, ...]


@cache
def ranges() -> Ranges:
    """The ranges in the data file beside this module."""
    text = files("app.access").joinpath("cloudflare.toml").read_bytes()
    data = msgspec.toml.decode(text, type=_File)
    return Ranges(data.published, tuple(map(ip_network, data.networks)))
