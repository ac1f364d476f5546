-- Offsets count rows. Where a view has rows with the same id, its items are counted at the end of the walk.

alter table clerk_feed.walk add column repeated boolean not null default false;
