-- What a failover or a restored dump undid has an old modified_at: only a delta that reads everything brings it back.

create table clerk_feed.history (
  timeline text primary key,
  seen timestamptz not null default now()
);

comment on table clerk_feed.history is
  'Since when this database is known to go its own way: a delta that reaches back to before then is of everything.';

-- Nothing is known of before: this is taken for the beginning.
insert into clerk_feed.history (timeline, seen) values (clerk_feed.timeline(), '-infinity');

-- A delta asks which full walks have ended since the moment it names; most walks are deltas.
create index on clerk_feed.walk (store, feed, id) where not incremental;
