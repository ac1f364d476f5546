-- Bookmarks: where the page at an offset of a walk begins. See app/catalog/bookmarks.py for the rule.

create table clerk_feed.walk (
  id bigint generated always as identity primary key,
  store text not null,
  feed text not null,
  incremental boolean not null,
  started timestamptz not null default now()
);

comment on table clerk_feed.walk is 'One row for each time an importer asked a feed for its page at offset 0.';

create index on clerk_feed.walk (started);

create table clerk_feed.bookmark (
  id bigint generated always as identity primary key,
  walk bigint not null,
  store text not null,
  feed text not null,
  incremental boolean not null,
  -- A bookmark serves the page at this offset; the page at written_by wrote it.
  at bigint not null,
  written_by bigint not null,
  -- The last item served before it: the key as text, and what text it is of. Null in an end mark.
  key text,
  key_family text not null,
  modified_at timestamptz,
  is_end boolean not null,
  used boolean not null default false,
  past boolean not null default false,
  written timestamptz not null default clock_timestamp(),
  check (is_end = (key is null))
)
-- used and past change in place, without touching an index.
with (fillfactor = 60);

comment on table clerk_feed.bookmark is 'Where the page at an offset begins; kept for a day.';

create index on clerk_feed.bookmark (store, feed, incremental, at);
create index on clerk_feed.bookmark (written);
