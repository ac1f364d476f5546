-- Rendered feeds: items kept ready as JSON and refreshed from their source. See app/catalog/rendered.py.

create table clerk_feed.rendered (
  id integer generated always as identity primary key,
  store text not null,
  feed text not null,
  -- The table of this schema that holds the items; null until the first refresh has succeeded. Its columns: id (of the
  -- source's own type), doc json (null: never valid yet), modified_at (the stamp of the refresh that changed it last),
  -- faults jsonb (why its row is not valid at present; then doc is the last valid version).
  items_table text,
  -- Items with a doc, and rows with faults.
  items bigint not null default 0,
  invalid bigint not null default 0,
  unique (store, feed)
);

comment on table clerk_feed.rendered is 'One row for each feed that was ever rendered.';

create table clerk_feed.refresh (
  id bigint generated always as identity primary key,
  rendered integer not null,
  started timestamptz not null,
  finished timestamptz not null default clock_timestamp(),
  outcome text not null check (outcome in ('done', 'held back', 'failed')),
  -- What changed items got as modified_at: later than that of every refresh before.
  stamp timestamptz,
  -- A moment at which readers saw the changes, written after they did; null where the process died in between.
  visible timestamptz,
  -- Items afterwards; where it was held back, what there would have been.
  items bigint,
  -- Where it was held back: the most there were in 24 hours.
  most bigint,
  added bigint,
  changed bigint,
  unchanged bigint,
  vanished bigint,
  invalid bigint,
  -- An operator said that so few items are right; what there was before is no measure any more.
  accepted boolean not null default false,
  -- For people: why it failed or was held back.
  detail text
);

comment on table clerk_feed.refresh is 'One row for each refresh of a rendered feed; kept for 30 days.';

create index on clerk_feed.refresh (rendered, id);
create index on clerk_feed.refresh (rendered, stamp) where stamp is not null;

create table clerk_feed.tombstone (
  id bigint generated always as identity primary key,
  store text not null,
  feed text not null,
  -- The item's id as text, and as it stands in JSON.
  item text not null,
  json_id json not null,
  -- The stamp of the refresh that no longer found it.
  vanished timestamptz not null,
  -- When Clerk first and last said ok to its deletion. It is sent again once walks that were open then have ended.
  pushed timestamptz,
  pushed_last timestamptz,
  -- Clerk refused it by itself, in so many pushes.
  refusals integer not null default 0,
  refused text
);

comment on table clerk_feed.tombstone is 'Items that vanished from a rendered feed, for Clerk to delete.';

create index on clerk_feed.tombstone (store, feed, item);
create index on clerk_feed.tombstone (store, feed, id) where pushed is null;

create table clerk_feed.invalid (
  store text not null,
  feed text not null,
  id text not null,
  attribute text not null,
  reason text not null,
  since timestamptz not null,
  primary key (store, feed, id, attribute)
);

comment on table clerk_feed.invalid is
  'Rows of rendered feeds that lack a required attribute. An item that was valid before keeps its last valid version.';

-- A list without what JSON or Clerk has no place for: NULLs, numbers that are none, moments at infinity. `depth` is the
-- number of the list's dimensions: what lies deeper is the shop's own. Only for lists no cheaper expression can do.
create function clerk_feed.pruned(list json, depth integer, kind text) returns text
language plpgsql stable strict parallel safe
as $$
begin
  return (
    select '[' || coalesce(string_agg(piece, ',' order by place), '') || ']'
    from (
      select
        e.place,
        case
          when json_typeof(e.element) = 'null' then null
          when depth > 1 then clerk_feed.pruned(e.element, depth - 1, kind)
          when kind = 'number' and json_typeof(e.element) <> 'number' then null
          when kind = 'time' then (
            select case when isfinite(t) then floor(date_part('epoch', t))::int8::text end
            from (select (e.element #>> '{}')::timestamptz as t) as moment
          )
          when kind = 'date' then (
            select case when isfinite(d) then ((d - date '1970-01-01')::int8 * 86400)::text end
            from (select (e.element #>> '{}')::date as d) as day
          )
          else replace(replace(e.element::text, E'\n', ' '), E'\r', ' ')
        end as piece
      from json_array_elements(list) with ordinality as e (element, place)
    ) as pieces
  );
end
$$;

create view clerk_feed.rendered_state as
select
  r.store,
  r.feed,
  r.items_table is not null as served,
  r.items,
  r.invalid,
  done.finished as refreshed,
  done.finished - done.started as took,
  done.added,
  done.changed,
  done.unchanged,
  done.vanished,
  last.outcome as last_outcome,
  last.finished as last_tried,
  last.detail as last_detail,
  (
    select count(*) from clerk_feed.tombstone as t where t.store = r.store and t.feed = r.feed and t.pushed is null
  ) as deletions_waiting
from clerk_feed.rendered as r
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id and f.outcome = 'done' order by f.id desc limit 1
) as done on true
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id order by f.id desc limit 1
) as last on true;

comment on view clerk_feed.rendered_state is
  'How each rendered feed stands: items, the last refresh that was done, the last that was tried, deletions to push.';
