-- What the status page shows that no other table knows. Written by every process every few seconds, never by a request.

create table clerk_feed.process (
  id text primary key,
  host text not null,
  pid integer not null,
  version text not null,
  started timestamptz not null,
  seen timestamptz not null default clock_timestamp(),
  -- Verified tokens it remembers.
  tokens integer not null default 0,
  -- Database connections: open, in use, and callers that wait for one.
  connections integer not null default 0,
  in_use integer not null default 0,
  waiting integer not null default 0,
  -- Whole feeds on their way: [{"store", "feed", "started", "items", "bytes"}].
  streams json not null default '[]'
);

comment on table clerk_feed.process is 'One row for each process that serves feeds; deleted when it stops, or after a day.';

create table clerk_feed.occurrence (
  -- refused, cut off, verified, invalid, source failed and others
  kind text not null,
  -- Empty where it belongs to none.
  store text not null,
  feed text not null,
  -- What of its kind: a problem's code, a cause, an attribute.
  code text not null,
  hour timestamptz not null,
  count bigint not null,
  -- How long it took, all together, where it takes time.
  seconds double precision not null,
  last timestamptz not null,
  -- The last one, for people.
  detail text not null,
  primary key (kind, store, feed, code, hour)
);

comment on table clerk_feed.occurrence is 'What happened how often, by the hour; kept for a week.';

create index on clerk_feed.occurrence (hour);

-- The last walks of a feed.
create index on clerk_feed.walk (store, feed, id);
