"""Figures as a person reads them: with the unit that fits."""

_MINUTE, _HOUR = 60, 3600


def size(bytes: float) -> str:
    """A size: 312 B, 14.2 kB, 3.4 MB."""
    if bytes < 1000:
        return f"{bytes:.0f} B"
    if bytes < 1e6:
        return f"{bytes / 1e3:,.1f} kB"
    return f"{bytes / 1e6:,.1f} MB" if bytes < 1e9 else f"{bytes / 1e9:,.2f} GB"


def duration(seconds: float) -> str:
    """A length of time: 85 ms, 2.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR:,} h {whole % _HOUR // _MINUTE} min"
