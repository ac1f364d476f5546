-- The other four feeds of a shop that has bench.item, as views over it, and stores that have a share of the products
-- each. Expects the catalog of catalog.sql; changes none of it, but for the table that remembers changes.

create or replace view bench.categories as
select
    id, 'Category ' || id as name, 'https://shop.example/category/' || id as url,
    case when id <= 12 then array[id * 10, id * 10 + 1] else '{}' end::integer[] as subcategories
from bench.item where id <= least(300, :items);

create or replace view bench.orders as
select
    id, json_build_array(json_build_object('id', id, 'quantity', 1 + stock % 3, 'price', price)) as products,
    created_at as time, id % 5000 as customer, 'customer' || id % 5000 || '@shop.example' as email, modified_at
from bench.item where id <= greatest(:items / 5, 1);

create or replace view bench.customers as
select
    'C' || lpad(id::text, 9, '0') as id, 'customer' || id || '@shop.example' as email,
    initcap(split_part(name, ' ', 1)) || ' ' || brand as name, on_sale as subscribed
from bench.item where id <= greatest(:items / 10, 1);

create or replace view bench.pages as
select
    id, 'blog' as type, 'https://shop.example/page/' || id as url, name as title, description as text
from bench.item where id <= least(200, :items);

create table if not exists bench.change (
    id integer not null,
    changed timestamptz not null
);
truncate bench.change;
