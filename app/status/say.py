"""Numbers and times in words, as pages for people have them. Times are unix seconds, all clocks UTC."""

from datetime import UTC, datetime

_THIN = "\u202f"


def number(value: float) -> str:
    """A number with its thousands apart."""
    return f"{round(value):,}".replace(",", _THIN)


def plural(value: int, one: str, many: str = "") -> str:
    """A number and its noun."""
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """How long, in the two units that matter."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    for size, name, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def ago(seconds: float) -> str:
    """How long ago."""
    if seconds < 10:
        return "just now"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return "just now"


def moment(when: float) -> str:
    """A point in time, to the second."""
    return datetime.fromtimestamp(when, UTC).strftime("%-d %b %Y %H:%M:%S UTC")


def clock(when: float) -> str:
    """A point in time, to the minute, without its year."""
    return datetime.fromtimestamp(when, UTC).strftime("%-d %b %H:%M")


def iso(when: float) -> str:
    """A point in time for machines."""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
