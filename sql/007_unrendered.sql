-- A feed that is served from its source for a while leaves what was rendered before behind.

create table clerk_feed.unrendered (
  store text not null,
  feed text not null,
  -- When the process began that serves it so.
  since timestamptz not null default now(),
  -- When it was last seen to serve; a minute before its end once it has ended.
  served timestamptz default now(),
  primary key (store, feed)
);

comment on table clerk_feed.unrendered is
  'Feeds that were rendered, and served unrendered since: before their next refresh they are not served as rendered.';
