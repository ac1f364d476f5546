-- How many items the refresh that was tried last found: what an operator accepts, where it was held back.

create or replace view clerk_feed.rendered_state as
select
  r.store,
  r.feed,
  r.items_table is not null as served,
  r.items,
  r.invalid,
  done.finished as refreshed,
  done.finished - done.started as took,
  done.added,
  done.changed,
  done.unchanged,
  done.vanished,
  last.outcome as last_outcome,
  last.finished as last_tried,
  last.detail as last_detail,
  (
    select count(*) from clerk_feed.tombstone as t where t.store = r.store and t.feed = r.feed and t.pushed is null
  ) as deletions_waiting,
  last.items as last_items
from clerk_feed.rendered as r
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id and f.outcome = 'done' order by f.id desc limit 1
) as done on true
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id order by f.id desc limit 1
) as last on true;
