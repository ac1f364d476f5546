-- How many items the feed had when a delta ended that may have made it much larger: full walks are measured by it too.

alter table clerk_feed.walk add column feed_items bigint;

comment on column clerk_feed.walk.feed_items is
  'Items of the whole feed when an incremental walk ended, where deltas since the last count may have added many.';
