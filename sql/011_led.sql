-- Whether an importer was led to a page by the pages before it, from offset 0 on: only then is its end believed.

alter table clerk_feed.asked add column led boolean not null default true;
alter table clerk_feed.bookmark add column led boolean not null default true;

comment on column clerk_feed.asked.led is 'Whether the last page was one that the pages before it led to, from offset 0 on.';
comment on column clerk_feed.bookmark.led is 'Whether the page that wrote it was one that the pages before it led to.';
