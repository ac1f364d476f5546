"""Trails: which bookmarks are one importer's. SQL for the statements that turn pages.

$1 is the store and $2 the feed in all of it. See bookmarks.py for the rule.
"""

YOUNG = "interval '2 hours'"
"""How long a bookmark is young: as long as an importer may stay at it."""

_END_ASKED_AGAIN = "interval '15 minutes'"
"""How long the answer that ends a sync may be asked for again, because it got lost."""

PAST = f"({{of}}.past or {{of}}.ended < now() - {_END_ASKED_AGAIN})"
"""Whether the importer whose bookmark it is has gone on, or has its end."""

CURRENT = f"(not coalesce({PAST}, false) and {{of}}.written > now() - {YOUNG})"
"""Whether an importer may still ask for what begins there."""

_BOOKMARKS = "b.store = $1 and b.feed = $2 and b.incremental = {incremental}"

GONE_ON = f"""
  update clerk_feed.bookmark as gone
  set past = true
  from (
    select b.id
    from clerk_feed.bookmark as b
    where {_BOOKMARKS} and b.trail = {{trail}} and not b.past and b.at < {{offset}} and b.at = any(array(
      select b.written_by
      from clerk_feed.bookmark as b
      where {_BOOKMARKS} and b.at = {{offset}} and b.trail = {{trail}} and not b.past
    ))
    for update skip locked
  ) as b
  where gone.id = b.id
"""  # noqa: S608 (our own)
"""Who is known to ask for the page at an offset has the one before: what that began from is past."""

HELD_ITEMS = f"""
  update clerk_feed.bookmark as other
  set ended = null
  from (
    select b.id
    from clerk_feed.bookmark as b
    where {_BOOKMARKS} and b.at = {{offset}} and b.ended is not null
      and {CURRENT.format(of="b")}
    order by b.id
    for update
  ) as b
  where other.id = b.id
"""  # noqa: S608 (our own)
"""What was the end is not any more, and may be asked for again for as long as any other page."""

ENDED = f"""
  update clerk_feed.bookmark as last
  set ended = now()
  from (
    select b.id
    from clerk_feed.bookmark as b
    where {_BOOKMARKS} and b.at = {{offset}} and {CURRENT.format(of="b")}
      and (b.trail = {{trail}} or {{trail}} is null and b.ended is not null)
    order by b.id
    for update
  ) as b
  where last.id = b.id
"""  # noqa: S608 (our own)
"""An answer was made that ends a sync."""
