-- A page that a standby makes long after deltas have brought what it lacks would undo it at Clerk.

alter table clerk_feed.walk add column beat timestamptz;

comment on column clerk_feed.walk.beat is
  'Where standbys are read: a recent moment of the primary, by which they show how far behind they are.';
