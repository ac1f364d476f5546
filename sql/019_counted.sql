-- While a delta runs its feed is counted, and may be counted again: what was accepted in between voids what was before.

alter table clerk_feed.walk add column counted timestamptz;

update clerk_feed.walk set counted = last_page where incremental and feed_items is not null;

comment on column clerk_feed.walk.counted is 'When feed_items of a delta was the size of the feed.';
