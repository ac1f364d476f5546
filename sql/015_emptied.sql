-- The empty answer that ends a walk may get lost like any other, and be asked for again.

alter table clerk_feed.bookmark add column emptied timestamptz;

comment on column clerk_feed.bookmark.emptied is
  'When an empty answer was last made that an importer may ask for again; a while later the bookmark counts as past.';
