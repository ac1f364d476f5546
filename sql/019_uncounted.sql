-- A feed that broke while a delta of it was sent: what was sent is at Clerk all the same.

alter table clerk_feed.walk add column uncounted boolean not null default false;

comment on column clerk_feed.walk.uncounted is
  'Whether feed_items is only what deltas sent: the feed could not be counted, or was smaller than that.';
