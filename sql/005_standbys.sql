-- Bookmarks know the timeline of the server that wrote them: a failover may have lost what was written after them.

do $$
begin
  perform pg_walfile_name(pg_current_wal_lsn());
  create function clerk_feed.timeline() returns text stable language sql as
    'select left(pg_walfile_name(pg_current_wal_lsn()), 8)';
exception
  when others then
    -- A database that is not quite PostgreSQL shows no timeline: then a failover goes unnoticed.
    create function clerk_feed.timeline() returns text stable language sql as 'select ''''';
end
$$;

comment on function clerk_feed.timeline is 'The timeline of this server''s log; every promotion of a standby begins one.';

alter table clerk_feed.bookmark add column timeline text not null default clerk_feed.timeline();
