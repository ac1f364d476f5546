-- A bookmark that stays while one of equal key becomes past stays for another importer, who came to it later.

alter table clerk_feed.bookmark rename column touched to renewed;

comment on column clerk_feed.bookmark.renewed is
  'When a bookmark of equal key that became past was written, two hours after this one at most: its age counts from then.';
