"""Findings on a terminal, and as JSON."""

import textwrap
from collections.abc import Iterable

import orjson
from rich.console import Console
from rich.text import Text

from app.diagnosis.findings import Finding, Severity, count_of

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_INDENT = 9


def show(console: Console, findings: Iterable[Finding], *, with_place: bool = False) -> None:
    """Each finding with its count, its examples and its cure, wrapped on a terminal and nowhere else.

    What is true of several feeds in the same words is said once.
    """
    places: dict[tuple[Severity, str, str, str], list[str]] = {}
    for finding in findings:
        said = (finding.severity, finding.what + _seen(finding), finding.cure, finding.code)
        place = "/".join(filter(None, (finding.store, finding.feed))) if with_place else ""
        places.setdefault(said, []).append(place)
    for (severity, what, cure, _), where in places.items():
        label = (f"{severity:<{_INDENT}}", _STYLES[severity])
        place = ", ".join(dict.fromkeys(filter(None, where)))
        text = _wrapped(console, f"{place}: {what}" if place else what)
        console.print(Text.assemble(label, text), soft_wrap=True)
        if cure:
            console.print(Text(" " * _INDENT + _wrapped(console, "→ " + cure, _INDENT + 2)), soft_wrap=True)


def counted(findings: Iterable[Finding]) -> str:
    """How many there are: "1 error and 2 warnings"; empty where there is neither."""
    found = list(findings)
    severities: tuple[Severity, ...] = ("error", "warning")
    counts = [(severity, count_of(found, severity)) for severity in severities]
    return " and ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts if count)


def as_json(report: object) -> str:
    """JSON with everything but quotes and control characters as it is."""
    return orjson.dumps(report, option=orjson.OPT_INDENT_2).decode()


def _seen(finding: Finding) -> str:
    """Of how many items it is true, and examples."""
    parts = []
    if finding.count is not None and finding.of:
        share = finding.count / finding.of * 100
        parts.append(
            f"In {finding.count:,} of {finding.of:,} items ({share:.0f} %)"
            if share >= 1
            else f"In {finding.count:,} of {finding.of:,} items ({share:.1g} %)"
        )
    if finding.examples:
        parts.append(f"{', such' if parts else 'Such'} as {'; '.join(finding.examples)}")
    return f" {''.join(parts)}." if parts else ""


def _wrapped(console: Console, text: str, indent: int = _INDENT) -> str:
    if not console.is_terminal:
        return text
    width = max(console.width - indent, 40)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)
