-- Two servers made anew from dumps count their objects alike: the cluster tells one history from the other.

do $$
declare
  before text := clerk_feed.timeline();
  body text := (select prosrc from pg_proc where oid = 'clerk_feed.timeline()'::regprocedure);
begin
  perform system_identifier from pg_control_system();
  execute format(
    'create or replace function clerk_feed.timeline() returns text stable language sql as %L',
    body || ' || '' '' || (pg_control_system()).system_identifier'
  );
  update clerk_feed.bookmark set timeline = clerk_feed.timeline() where timeline = before;
  update clerk_feed.asked set timeline = clerk_feed.timeline() where timeline = before;
  update clerk_feed.refresh set timeline = clerk_feed.timeline() where timeline = before;
exception
  when insufficient_privilege or undefined_function or feature_not_supported then
    null;  -- a database that is not quite PostgreSQL, or keeps that for itself, is told by what it shows
end
$$;
