-- Nothing that Clerk is to delete is given up, and what was told to another history of this database is not believed.

alter table clerk_feed.tombstone add column refused_at timestamptz;
comment on column clerk_feed.tombstone.refused_at is 'When Clerk refused it by itself the last time.';
create index on clerk_feed.tombstone (store, feed, id) where pushed is not null and refusals > 0;

-- After a failover, or in a database made anew from a dump, an item may have been deleted at Clerk that is there again
-- as it was: no refresh finds it changed.
alter table clerk_feed.refresh add column timeline text not null default clerk_feed.timeline();
comment on column clerk_feed.refresh.timeline is 'The history it belongs to: deltas go back to refreshes of theirs only.';

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
  ) + (
    -- Due again after a walk that was under way, and refused then.
    select count(*)
    from clerk_feed.tombstone as t
    where t.store = r.store and t.feed = r.feed and t.pushed is not null and t.refusals > 0
  ) as deletions_waiting,
  last.items as last_items
from clerk_feed.rendered as r
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id and f.outcome = 'done' order by f.id desc limit 1
) as done on true
left join lateral (
  select * from clerk_feed.refresh as f where f.rendered = r.id order by f.id desc limit 1
) as last on true;
