-- "Hours back" are reckoned from each page's own now: a delta must go by the moment it began.

alter table clerk_feed.bookmark add column began timestamptz;

comment on column clerk_feed.bookmark.began is
  'When the first page was asked for of the delta that led to it; null in full walks, and where it was not noted yet.';
