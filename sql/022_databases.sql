-- A database made by "create database ... template" counts its objects as the one it was made of, in the same cluster:
-- its own number tells it.

-- What is written meanwhile would be of a history that is no more.
lock table clerk_feed.asked, clerk_feed.bookmark, clerk_feed.refresh in share row exclusive mode;

create or replace procedure clerk_feed.tell_histories() language plpgsql as $$
declare
  told text := '''clerk_feed.bookmark''::regclass::oid || '' '''
    || ' || (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())';
begin
  -- A database that is not quite PostgreSQL, or keeps some of it to itself, is told by what it shows.
  begin
    perform pg_walfile_name(pg_current_wal_lsn());
    told := 'left(pg_walfile_name(pg_current_wal_lsn()), 8) || '' '' || ' || told;
  exception
    when others then null;
  end;
  begin
    perform pg_control_system();
    told := told || ' || '' '' || (pg_control_system()).system_identifier';
  exception
    when others then null;
  end;
  execute format('create or replace function clerk_feed.timeline() returns text stable language sql as %L', 'select ' || told);
end
$$;

do $$
declare
  before text := clerk_feed.timeline();
begin
  call clerk_feed.tell_histories();
  update clerk_feed.bookmark set timeline = clerk_feed.timeline()
  where timeline = before and written > now() - interval '24 hours';
  update clerk_feed.asked set timeline = clerk_feed.timeline() where timeline = before;
  update clerk_feed.refresh set timeline = clerk_feed.timeline() where timeline = before;
end
$$;

alter table clerk_feed.bookmark add column settled timestamptz;

comment on column clerk_feed.bookmark.settled is
  'From when on the items of the delta that led to it come by their ids; null in full walks, and where it was not noted.';
