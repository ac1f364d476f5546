-- How large a feed was when it was counted, because deltas may have brought items to it.

create table clerk_feed.feed_size (
  store text not null,
  feed text not null,
  counted timestamptz not null,
  items bigint not null,
  primary key (store, feed, counted)
);

comment on table clerk_feed.feed_size is 'Counts of feeds, of which no later one is as large.';
comment on column clerk_feed.feed_size.counted is 'When counting began.';

insert into clerk_feed.feed_size (store, feed, counted, items)
select store, feed, last_page, max(feed_items)
from clerk_feed.walk
where incremental and feed_items is not null
group by store, feed, last_page;

update clerk_feed.walk set feed_items = null where incremental;

comment on column clerk_feed.walk.feed_items is 'How many items a full walk was sent that never ended.';
