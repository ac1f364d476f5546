"""A second look at rows that a statement may have missed.

A statement reads the state of the moment it began, after it has waited for locks. But which partitions and inheriting
tables there are PostgreSQL finds out before: one that another transaction attaches, with rows of others, is missing.
And a function, a policy that calls one, or another server looks at its tables only after that moment: one that was
emptied and filled again meanwhile was empty to it. Such rows exist all the time; so they are read anew.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from app.catalog.source import Source
from app.catalog.statements import Part, ids_statement
from app.protocol.problems import SOURCE_CHANGING, Refusal

_LOOKS = 5
"""So many times the same rows are read anew: new ones may come all the time."""


Ask = Callable[[str, Sequence[Any]], Awaitable[Sequence[Any]]]
"""Answers a statement and its arguments with rows."""


class Around(msgspec.Struct, frozen=True):
    """Which partitions there were before a statement and after its first rows, by the server that it ran on."""

    before: str | None
    after: str | None


async def partitions_of(connection: Any, source: Source) -> str | None:
    """Which partitions and inheriting tables a source has, by this server; None where it has none."""
    return await connection.fetchval(source.partitions) if source.partitions else None


class SecondLook:
    """Looks at the rows of one source while they are read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._partitions: str | None = source.partitions_seen
        self._left = _LOOKS

    @property
    def looks(self) -> bool:
        """Whether there is anything to be looked at twice."""
        return bool(self._source.partitions) or self._source.looks_late

    async def lacks(
        self, part: Part, rows: Sequence[Any], ask: Ask, *, around: Around | None, is_sorted: bool = False
    ) -> bool:
        """Whether some rows of a part are to be read anew; `around`: they are the first of their statement.

        Where a statement sorts everything first, `is_sorted`, another look at each batch would do so as well.
        Raises Refusal where its partitions change each time.

        `ask` is answered by the connection that read them, where it still holds locks: whoever waits for these would
        have another one wait as well.
        """
        source = self._source
        if not self.looks:
            return False
        changed = around is not None and self._partitions_changed(around)
        if changed and not self._left:
            # Each look may have been without other rows.
            detail = f"The partitions beneath {source.relation} changed {_LOOKS + 1} times in a row while it was read."
            raise Refusal(SOURCE_CHANGING, detail)
        lacks = changed
        if rows and not changed and self._left and source.looks_late and not is_sorted:
            lacks = not part.skip and part.order != "counted" and await self._are_more(part, rows, ask)
        self._left = self._left - 1 if lacks else _LOOKS
        return lacks

    def _partitions_changed(self, around: Around) -> bool:
        # A standby may lag behind the server that described the source, so this alone does not tell.
        known, self._partitions = self._partitions, around.after
        return not (known == around.before == around.after)

    async def _are_more(self, part: Part, rows: Sequence[Any], ask: Ask) -> bool:
        """Whether a statement of now finds valid items among the rows that these are without."""
        odd = [row[:-1] if part.dated_key else row for row in rows if not row[0]]
        invalid = {item.id for item in self._source.encoder.items(odd).invalid}
        found = await ask(*ids_statement(self._source, part, part.position(rows)))
        return not {row["id"] for row in found} <= {row[1] for row in rows} - invalid
