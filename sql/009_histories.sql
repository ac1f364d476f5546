-- A database that was made anew from a dump goes on from before the dump, on a timeline of the same number.

do $$
declare
  before text := clerk_feed.timeline();
begin
  if before = '' then
    create or replace function clerk_feed.timeline() returns text stable language sql as
      'select ''clerk_feed.bookmark''::regclass::oid::text';
  else
    create or replace function clerk_feed.timeline() returns text stable language sql as
      'select left(pg_walfile_name(pg_current_wal_lsn()), 8) || '' '' || ''clerk_feed.bookmark''::regclass::oid';
  end if;
  update clerk_feed.bookmark set timeline = clerk_feed.timeline() where timeline = before;
  update clerk_feed.asked set timeline = clerk_feed.timeline() where timeline = before;
end
$$;

comment on function clerk_feed.timeline is
  'This history of the data: every promotion of a standby begins one, and so does a database made anew from a dump.';

comment on column clerk_feed.bookmark.renewed is
  'When another bookmark at its place that became past was written, for its age counts from then; in deltas two hours at most.';
