-- The pages of one delta ask for changes since the same moment, and so does whoever asks for one of them again.

alter table clerk_feed.bookmark drop column emptied, add column since double precision;

comment on column clerk_feed.bookmark.since is
  'The modified_after of the delta that led to it, in unix seconds; null in full walks.';
