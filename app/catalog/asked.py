"""What was asked of a feed last: SQL for the statements that turn pages.

It tells whether the pages before have led an importer to the one it asks for, and whether there was a failover since.
$1 is the store and $2 the feed in all of it.
"""

from app.catalog.trails import PAST, YOUNG

_PATIENCE = "2s"
"""How long a page waits for a row that another one has locked: nobody holds one for long, but a frozen process does."""

_AWAY = "interval '6 hours'"
"""How long after its last bookmark that a new server knows of an importer may ask there: it stayed at that for two
hours, stays as long at one that only the former server knew, and the new one may have been two hours behind."""

_THE_FEED = "o.store = $1 and o.feed = $2 and o.incremental = {incremental}"

ASKED = f"""
  select {{offset}} in (o.at, o.written_by) and o.led and o.asked > now() - {YOUNG} as in_turn,
    o.failed_over > now() - {YOUNG}
      or (o.timeline <> clerk_feed.timeline() and o.asked > now() - {_AWAY}) as failed_over
  from clerk_feed.asked as o
  where {_THE_FEED}
"""  # noqa: S608 (our own)
"""Whether the page asked for now is in turn, and whether there was a failover that an importer may not know of yet."""

LED = """(
    coalesce((select in_turn from asked), false)
    or exists (
      select from b where b.led and b.standing < 2 and not b.closed and b.at - b.written_by = {limit}
    )
  )"""
"""Behind ASKED and the bookmarks b to choose from: whether the pages before have led whoever asks to this one.

A bookmark that an earlier sync has left leads nobody: an importer that steps farther than its pages are long, or passes
over a page that failed, would go from one to the next, and take that sync's end for its own.
"""

NOTE = f"""free as materialized (
  -- Nobody waits for another page here.
  select
  from clerk_feed.asked as o
  where {_THE_FEED} and (select set_config('lock_timeout', '{_PATIENCE}', true)) is not null
  for update skip locked
), noted as (
  update clerk_feed.asked as o
  set at = {{offset}} + {{limit}}, written_by = {{offset}}, asked = clock_timestamp(),
    timeline = clerk_feed.timeline(), led = {{led}},
    failed_over = case
      when o.timeline <> clerk_feed.timeline() and o.asked > now() - {_AWAY} then now()
      else o.failed_over
    end
  where {_THE_FEED} and exists (select from free) and {{where}}
), noted_first as (
  insert into clerk_feed.asked (store, feed, incremental, at, written_by, led)
  select $1, $2, {{incremental}}, {{offset}} + {{limit}}, {{offset}}, {{led}}
  where not exists (select from clerk_feed.asked as o where {_THE_FEED}) and {{where}}
  on conflict do nothing
)"""  # noqa: S608 (our own)
"""CTEs that note what is asked; `where` says whether at all."""

LOST = f"""
  select
  from clerk_feed.bookmark as o
  where {_THE_FEED} and o.at <= {{offset}} and o.timeline <> (select clerk_feed.timeline())
    and o.written > now() - {_AWAY} and (not {PAST.format(of="o")} or not o.past and o.since = {{since}})
"""  # noqa: S608 (our own)
"""Bookmarks of before a failover, as far as the offset, that walks may have gone on from without the new server."""

NOTE_FAILOVER = f"""
  update clerk_feed.asked as o
  set timeline = clerk_feed.timeline(), failed_over = now()
  from (
    select o.store, o.feed, o.incremental
    from clerk_feed.asked as o
    where {_THE_FEED.format(incremental="$3")}
      and o.timeline <> clerk_feed.timeline() and o.asked > now() - {_AWAY}
    for update skip locked
  ) as seen
  where o.store = seen.store and o.feed = seen.feed and o.incremental = seen.incremental
"""  # noqa: S608 (our own)
"""Whoever is refused for a failover notes it too: the hours in which walks may be under way begin with it."""
