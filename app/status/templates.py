"""The templates of our own pages."""

from functools import cache
from typing import TYPE_CHECKING

from app.status import say

if TYPE_CHECKING:
    import jinja2


@cache
def template(name: str) -> "jinja2.Template":
    """A template, compiled when it is first asked for: Jinja takes longer to import than a start may wait."""
    return _environment().get_template(name)


@cache
def _environment() -> "jinja2.Environment":
    import jinja2  # noqa: PLC0415 (as said above)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app.status"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter in ("number", "plural", "duration", "ago", "moment", "clock", "iso"):
        environment.filters[filter] = getattr(say, filter)
    return environment
