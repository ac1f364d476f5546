"""Findings: what is wrong, where, since which item, and the cure.

An error is what makes a sync lose items or break. A warning is worth a look before going live. A note is good to
know and asks for nothing.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]

_RANKS: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One diagnosis. `what` and `cure` are sentences for a person and hold no secret."""

    severity: Severity
    code: str
    what: str
    cure: str = ""
    store: str | None = None
    feed: str | None = None
    attribute: str | None = None
    count: int | None = None
    """Of how many items it is true, where it is about items."""
    of: int | None = None
    """How many items were looked at."""
    examples: tuple[str, ...] = ()
    """Ids or values it was seen with, as JSON."""


def error(code: str, what: str, cure: str = "", **where: object) -> Finding:
    return msgspec.convert({"severity": "error", "code": code, "what": what, "cure": cure, **where}, Finding)


def warning(code: str, what: str, cure: str = "", **where: object) -> Finding:
    return msgspec.convert({"severity": "warning", "code": code, "what": what, "cure": cure, **where}, Finding)


def note(code: str, what: str, cure: str = "", **where: object) -> Finding:
    return msgspec.convert({"severity": "note", "code": code, "what": what, "cure": cure, **where}, Finding)


def placed(findings: Iterable[Finding], **where: str) -> list[Finding]:
    """The findings with a place filled in: store, feed."""
    return [msgspec.structs.replace(finding, **where) for finding in findings]


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; otherwise in the order they were found."""
    return sorted(findings, key=lambda finding: _RANKS[finding.severity])


def count_of(findings: Iterable[Finding], severity: Severity) -> int:
    return sum(finding.severity == severity for finding in findings)
