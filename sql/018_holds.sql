-- Offsets overstate what an importer was sent, where it was sent items twice.

alter table clerk_feed.bookmark add column holds bigint;

comment on column clerk_feed.bookmark.holds is
  'How many items whose bookmark it is has been sent up to its key; null where that is not known.';

comment on column clerk_feed.walk.feed_items is
  'How many items the feed had when it was counted at the end of a delta; or how many a full walk was sent that never ended.';
