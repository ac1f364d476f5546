-- What was asked of a feed last, and until when it is taken for one that several importers read at once.
-- See app/catalog/asked.py for what follows from it.

create table clerk_feed.asked (
  store text not null,
  feed text not null,
  incremental boolean not null,
  -- Pages so far: whoever read another number before he wrote was not alone.
  pages bigint not null default 1,
  -- The page at written_by was asked for last; the next one is at this offset.
  at bigint not null,
  written_by bigint not null,
  ended boolean not null,
  asked timestamptz not null default clock_timestamp(),
  shared_until timestamptz not null,
  -- The server's timeline, and when it was seen to be another one soon after a page.
  timeline text not null default clerk_feed.timeline(),
  failed_over timestamptz,
  primary key (store, feed, incremental)
)
-- Changed by every page, in place.
with (fillfactor = 10);

comment on table clerk_feed.asked is 'One row for each feed and kind of walk: its last page, and whether importers met.';

alter table clerk_feed.bookmark
  -- When a page was last begun from it.
  add column touched timestamptz,
  -- Whether another page of the feed was being noted at the same moment.
  add column clash boolean not null default false,
  -- Whether a page on the way here had bookmarks with different keys to choose from, or held an id twice: then offsets
  -- overstate the number of items.
  add column ambiguous boolean not null default false,
  add column repeated boolean not null default false;

create index on clerk_feed.bookmark (store, feed, incremental) where clash;
