-- Each walk is a row: what it came to, and how it ended. Kept 30 days.

alter table clerk_feed.walk
  -- The whole feed in one answer, instead of pages.
  add column whole boolean not null default false,
  add column last_page timestamptz not null default now(),
  add column pages integer not null default 0,
  -- Items sent, repeated ones included, and rows left out.
  add column items bigint not null default 0,
  add column invalid bigint not null default 0,
  -- Some page had bookmarks with different keys to choose from, so offsets overstate the number of items.
  add column ambiguous boolean not null default false,
  -- Null while it goes on, and for ever where the importer went away.
  add column ended text check (ended in ('finished', 'held back')),
  -- How many items the feed had by the guard's count.
  add column final_items bigint,
  -- A digest of the address that began it.
  add column caller text,
  set (fillfactor = 70);

create index on clerk_feed.walk (store, feed, id) where ended is not null and not incremental;

create table clerk_feed.accepted_shrink (
  store text not null,
  feed text not null,
  items bigint not null,
  accepted timestamptz not null default now(),
  primary key (store, feed)
);

comment on table clerk_feed.accepted_shrink is
  'Sizes an operator said are right, by clerk-feed accept-shrink; void once a walk has finished after it.';
