-- One store with several languages: an example to copy.
--
-- Clerk advises one store for each language, and README shows how. Where all languages must be in one store, Clerk
-- takes objects of language and text for name, description, image and url of products and categories. Pages are not
-- imported into such a store.
--
-- Clerk's index breaks easily where languages differ, so every item here has all of them, in each of its attributes:
-- a text that is not translated yet falls back on the shop's main language. `clerk-feed check --scan` finds items that
-- differ.
--
-- Schema shop holds tables as a shop would have them; schema languages holds the views that clerk-feed serves. The file
-- expects a database without these two schemas.

create schema shop;
create schema languages;


-- Tables

create table shop.language (
    name text primary key,
    is_main boolean not null
);

create unique index on shop.language (is_main) where is_main;

create table shop.category (
    id integer primary key,
    parent_id integer references shop.category
);

create index on shop.category (parent_id);

create table shop.category_text (
    category_id integer references shop.category,
    language text references shop.language,
    name text not null,
    path text not null,
    primary key (category_id, language)
);

create table shop.product (
    id integer primary key,
    category_id integer not null references shop.category,
    price numeric(10, 2) not null,
    image_file text not null,
    created_at timestamptz not null default now(),
    modified_at timestamptz not null default now()
);

create index on shop.product (modified_at, id);

create table shop.product_text (
    product_id integer references shop.product,
    language text references shop.language,
    name text not null,
    description text not null,
    path text not null,
    primary key (product_id, language)
);

insert into shop.language values ('danish', true), ('german', false);

insert into shop.category values (1, null), (2, 1);
insert into shop.category_text values
    (1, 'danish', 'Møbler', '/da/moebler'), (1, 'german', 'Möbel', '/de/moebel'),
    (2, 'danish', 'Stole', '/da/stole'), (2, 'german', 'Stühle', '/de/stuehle');

insert into shop.product (id, category_id, price, image_file, created_at) values
    (1, 2, 499.95, 'stol.jpg', '2026-01-01'),
    (2, 2, 899.00, 'gyngestol.jpg', '2026-02-01');
insert into shop.product_text values
    (1, 'danish', 'Stol', 'En stol af bøg', '/da/stol'),
    (1, 'german', 'Stuhl', 'Ein Stuhl aus Buche', '/de/stuhl'),
    (2, 'danish', 'Gyngestol', 'En gyngestol', '/da/gyngestol');  -- not translated yet


-- Views
--
-- A change of a text must set modified_at of its product, or a sync of what changed does not see it.

create view languages.products as
select
    p.id,
    texts.name,
    texts.description,
    p.price,
    texts.image,
    texts.url,
    array[p.category_id] as categories,
    p.created_at,
    p.modified_at
from shop.product as p
cross join lateral (
    select
        json_object_agg(l.name, coalesce(t.name, main.name)) as name,
        json_object_agg(l.name, coalesce(t.description, main.description)) as description,
        json_object_agg(l.name, 'https://images.shop.example/' || p.image_file) as image,
        json_object_agg(l.name, 'https://www.shop.example' || coalesce(t.path, main.path)) as url
    from shop.language as l
    cross join shop.language as m
    join shop.product_text as main on main.product_id = p.id and main.language = m.name
    left join shop.product_text as t on t.product_id = p.id and t.language = l.name
    where m.is_main
) as texts;

create view languages.categories as
select
    c.id,
    texts.name,
    texts.url,
    array(select below.id from shop.category as below where below.parent_id = c.id order by below.id) as subcategories
from shop.category as c
cross join lateral (
    select
        json_object_agg(l.name, coalesce(t.name, main.name)) as name,
        json_object_agg(l.name, 'https://www.shop.example' || coalesce(t.path, main.path)) as url
    from shop.language as l
    cross join shop.language as m
    join shop.category_text as main on main.category_id = c.id and main.language = m.name
    left join shop.category_text as t on t.category_id = c.id and t.language = l.name
    where m.is_main
) as texts;
