"""What was asked of a feed last, and whether several importers share it: SQL for the statements that turn pages.

As long as each page that is asked for is the one behind the page before, and a sync begins a while after the empty
answer to the one before, each request tells that one page has arrived, and it can be told which bookmarks are past.
Anything else (a page out of turn, or once more, another limit in mid-walk, a start before the end or just behind it,
two pages at the same moment) may be another importer, or an answer that got lost: what it tells of can't be told, and
for two hours nothing becomes past. See bookmarks.py for the rule.

$1 is the store and $2 the feed in all of it.
"""

YOUNG = "interval '2 hours'"
"""How long a bookmark is young: as long as an importer may stay at it. What tells of importers counts for as long."""

AGE = "coalesce({of}.renewed, {of}.written)"
"""From when the age of a bookmark counts."""

_END_ASKED_AGAIN = "interval '15 minutes'"
"""How long the empty answer to a full sync may be asked for again, because it got lost. Deltas may follow each other by
minutes: for them see CANDIDATES in bookmarks.py."""

_PATIENCE = "2s"
"""How long a page waits for a row that another one has locked: nobody holds one for long, but a frozen process does."""

_OUT_OF_TURN = f"""case
      when {{offset}} = 0 then not (
        o.ended and (o.incremental or o.asked < now() - {_END_ASKED_AGAIN}) or o.asked < now() - {YOUNG}
      )
      else {{offset}} <> o.at or {{limit}} <> o.at - o.written_by
    end"""
"""Whether the page at an offset is not the next one after what was asked last, o."""

_THE_FEED = "o.store = $1 and o.feed = $2 and o.incremental = {incremental}"

CLASHED = f"""exists (
    select from clerk_feed.bookmark as o where {_THE_FEED} and o.clash and o.written > now() - {YOUNG}
  )"""
"""Whether two pages of the feed were noted at the same moment within that time."""

ASKED = f"""
  select o.pages, {{offset}} in (o.at, o.written_by) and o.led and o.asked > now() - {YOUNG} as in_turn,
    o.shared_until > now() or {_OUT_OF_TURN} or {CLASHED} as shared,
    o.failed_over > now() - {YOUNG}
      or (o.timeline <> clerk_feed.timeline() and o.asked > now() - {YOUNG}) as failed_over
  from clerk_feed.asked as o
  where {_THE_FEED}
"""  # noqa: S608 (our own)
"""How many pages were asked for, whether the page asked for now is in turn, whether the feed is shared, if only by
whoever asks now, and whether there was a failover within that time."""

LED = """(
    coalesce((select in_turn from asked), false)
    or exists (select from b where b.led and not b.past and not b.old and b.at - b.written_by = {limit})
  )"""
"""Behind ASKED and the bookmarks b to choose from: whether the pages before have led whoever asks to this one.

A bookmark that an earlier sync has left leads nobody: an importer that steps farther than its pages are long, or passes
over a page that failed, would go from one to the next, and take that sync's end for its own.
"""

NOTE = f"""free as materialized (
  -- Nobody waits for another page here: whose row is locked has company.
  select
  from clerk_feed.asked as o
  where {_THE_FEED} and (select set_config('lock_timeout', '{_PATIENCE}', true)) is not null
  for update skip locked
), noted as (
  update clerk_feed.asked as o
  set pages = o.pages + 1, at = {{offset}} + {{limit}}, written_by = {{offset}}, ended = {{ended}},
    asked = clock_timestamp(), timeline = clerk_feed.timeline(), led = {{led}},
    failed_over = case
      when o.timeline <> clerk_feed.timeline() and o.asked > now() - {YOUNG} then now()
      else o.failed_over
    end,
    shared_until = case
      when o.pages <> {{pages}} or {_OUT_OF_TURN} then now() + {YOUNG}
      else o.shared_until
    end
  where {_THE_FEED} and exists (select from free) and {{where}}
  returning o.shared_until > now() as shared
), noted_first as (
  insert into clerk_feed.asked (store, feed, incremental, at, written_by, ended, led, shared_until)
  select $1, $2, {{incremental}}, {{offset}} + {{limit}}, {{offset}}, {{ended}}, {{led}},
    case
      when {{offset}} = 0 and not exists (
        select from clerk_feed.bookmark as o where {_THE_FEED} and o.written > now() - {YOUNG}
      ) then '-infinity'::timestamptz
      else now() + {YOUNG}
    end
  where not exists (select from clerk_feed.asked as o where {_THE_FEED}) and {{where}}
  on conflict do nothing
  returning shared_until > now() as shared
), said as materialized (
  select shared from noted union all select shared from noted_first
)"""  # noqa: S608 (our own)
"""CTEs that note what is asked, read as `pages` by ASKED; `where` says whether at all."""

SHARED = f"(coalesce((select shared from said), true) or {CLASHED})"  # noqa: S608 (our own)
"""Behind NOTE: whether the feed is shared."""

CLASH = "not exists (select from said)"
"""Behind NOTE: whether another page was being noted at the same moment."""

NOTED = "(select count(*) from said) >= 0"
"""Behind NOTE: true, and what comes with it waits for it."""

STARTED = f"""
  update clerk_feed.bookmark as s
  set used = true, renewed = case
    when s.past or s.incremental or {AGE.format(of="s")} < now() - {YOUNG} then s.renewed
    else now()
  end
  from (select o.id, o.used from clerk_feed.bookmark as o where o.id = {{start}} for update skip locked) as o
  where s.id = o.id
  returning s.id, s.written_by, s.at, o.used as again, s.past or {AGE.format(of="s")} < now() - {YOUNG} as over
"""  # noqa: S608 (our own)
"""A page begins from a bookmark; `again` where one had before."""

BEGUN_FROM_OLD = "coalesce((select started.over from started), false)"
"""Behind STARTED: whether the bookmark that a page leaves counts as used from the first. Which page has arrived can't
be told where one began from a bookmark that is past or old: that made no other one as young as itself."""

ARRIVED_AT = f"""
    select started.written_by
    from started
    where not started.again and not started.over and not {{shared}} and not exists (
      select
      from clerk_feed.bookmark as o
      where {_THE_FEED} and o.at = started.at and not o.past and o.id <> started.id
        and {AGE.format(of="o")} > now() - {YOUNG}
    )
"""  # noqa: S608 (our own)
"""The offset of the page that is known to have arrived: it wrote what another page begins from for the first time.

Where there are several to begin from, whose page has arrived can't be told. One that is past or old tells of nobody: it
may have been left by a walk that was given up.
"""

LOST = f"""
  select
  from clerk_feed.bookmark as o
  where {_THE_FEED} and o.at <= {{offset}} and not o.past
    and o.timeline <> clerk_feed.timeline() and {AGE.format(of="o")} > now() - {YOUNG}
"""  # noqa: S608 (our own)
"""Bookmarks of before a failover that walks may have gone on from, as far as the offset."""
