-- Importers are told from each other by the bookmarks they leave. See app/catalog/trails.py.

create sequence clerk_feed.trail;

alter table clerk_feed.bookmark
  drop column used,
  drop column renewed,
  drop column clash,
  add column trail bigint not null default nextval('clerk_feed.trail'),
  add column ended timestamptz,
  add column closed boolean not null default false;

comment on column clerk_feed.bookmark.trail is
  'Bookmarks with the same number are one importer''s. One that can''t be told from others begins a new trail.';
comment on column clerk_feed.bookmark.ended is
  'When the answer was last made from it that ends a sync; a while later the bookmark counts as past.';
comment on column clerk_feed.bookmark.closed is
  'Whether an importer on its trail was led to its end: it leads no other one.';

-- What became past by another rule may be somebody's place.
update clerk_feed.bookmark set past = false, closed = past where written > now() - interval '2 hours';

alter table clerk_feed.asked drop column pages, drop column ended, drop column shared_until;

comment on table clerk_feed.asked is 'One row for each feed and kind of walk: its last page.';
