-- Two servers made anew from dumps count their objects alike: the cluster tells one history from the other.

-- What is written meanwhile would be of a history that is no more.
lock table clerk_feed.asked, clerk_feed.bookmark, clerk_feed.refresh in share row exclusive mode;

create procedure clerk_feed.tell_histories() language plpgsql as $$
declare
  told text := '''clerk_feed.bookmark''::regclass::oid::text';
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

comment on procedure clerk_feed.tell_histories is
  'Makes clerk_feed.timeline() of what this server shows: another one, to which a dump was brought, may show less.';

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
