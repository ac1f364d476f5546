-- A feed that is served from its source for a while leaves what was rendered before behind.

alter table clerk_feed.rendered add column behind boolean not null default false;

comment on column clerk_feed.rendered.behind is
  'The feed was served unrendered since its last refresh: its items are not served before the next one.';
