"""Trails: which bookmarks are one importer's. SQL for the statements that turn pages.

$1 is the store and $2 the feed in all of it. See bookmarks.py for the rule.
"""

YOUNG = "interval '2 hours'"
"""How long a bookmark is young: as long as an importer may stay at it."""

_END_ASKED_AGAIN = "interval '10 minutes'"
"""How long the answer that ends a sync may be asked for again, because it got lost."""

PAST = f"({{of}}.past or coalesce({{of}}.ended < now() - {_END_ASKED_AGAIN}, false))"
"""Whether the importer whose bookmark it is has gone on, or has its end."""

CURRENT = f"(not {PAST} and {{of}}.written > now() - {YOUNG})"
"""Whether an importer may still ask for what begins there."""

OF_ITS_DELTA = f"coalesce(not {{of}}.past and {{of}}.since = {{since}} and {{of}}.written > now() - {YOUNG}, false)"
"""Whether it is a bookmark of the delta `since` some moment, whose importer may be told later than in ten minutes."""

_BOOKMARKS = "b.store = $1 and b.feed = $2 and b.incremental = {incremental}"

GONE_ON = f"""
  update clerk_feed.bookmark as behind
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
  where behind.id = b.id
"""  # noqa: S608 (our own)
"""Who is known to ask for the page at an offset has the one before: what that began from is past."""

PATIENT = "(select count(*) from free) >= 0"
"""Behind NOTE of asked.py: true, and what comes with it waits for a locked row no longer than a page should."""

_LATER = "interval '2 minutes'"
"""How long a page may take. When it was begun, an end may still have been one to ask for again."""

_MAY_BE_THE_END = f"""
    {_BOOKMARKS} and b.at = {{offset}} and not b.past and b.written > now() - {YOUNG}
    and (b.ended is null or b.ended > now() - {_END_ASKED_AGAIN} - {_LATER}) and {PATIENT}
"""

HELD_ITEMS = f"""
  update clerk_feed.bookmark as last
  set ended = null, closed = last.closed and not {{led}}
  from (
    select b.id
    from clerk_feed.bookmark as b
    where {_MAY_BE_THE_END} and (b.closed or b.ended is not null)
    order by b.id
    for update
  ) as b
  where last.id = b.id
"""  # noqa: S608 (our own)
"""What was the end is not any more, and may be asked for again for as long as any other page. It leads there again,
where whoever was sent these items was `led`."""

ENDED = f"""
  update clerk_feed.bookmark as last
  set past = coalesce(last.trail = {{trail}} and last.at < {{offset}}, false),
    closed = last.closed or coalesce(last.trail = b.closing, false),
    ended = case
      when last.at = {{offset}} and (last.trail = {{trail}} or last.ended is not null) then now()
      else last.ended
    end
  from (
    select b.id, closing.trail as closing
    from (
      select coalesce({{trail}}, (
        select b.trail
        from clerk_feed.bookmark as b
        where {_MAY_BE_THE_END} and not b.closed and b.at - b.written_by = {{limit}}
        order by b.since is distinct from {{since}}, b.id
        limit 1
      )) as trail
    ) as closing, clerk_feed.bookmark as b
    where {_BOOKMARKS} and b.at <= {{offset}} and not b.past and b.written > now() - {YOUNG} and {PATIENT}
      and (b.trail = closing.trail or b.at = {{offset}} and b.ended > now() - {_END_ASKED_AGAIN} - {_LATER})
    order by b.id
    for update of b
  ) as b
  where last.id = b.id
"""  # noqa: S608 (our own)
"""An answer was made that ends a sync. Where whoever asked can't be told, one trail is closed all the same, of pages as
long as its own: each trail leads one importer to its end, and nobody else."""
