-- The bench's catalog: one wide table of :items products and the view that is served.
--
-- Every value follows from its row number, so each run builds the same shop. The view passes every column through:
-- what is measured is the feed, not the shop's joins. Expects a database without schema bench and one transaction
-- around it.

set local synchronous_commit = off;
set local work_mem = '256MB';
set local maintenance_work_mem = '512MB';
set local jit = off;

create schema bench;

-- Dice that always fall the same way: roll(7, 3, 20) is some number from 0 to 19, the same one every time. The planner
-- unfolds both functions into the statements that use them.
create function pg_temp.roll(n integer, what integer, sides integer) returns integer
    language sql immutable
    return ((hashint4extended(n, what) & 2147483647) % sides)::integer;

create function pg_temp.pick(n integer, what integer, words text[]) returns text
    language sql immutable
    return words[1 + pg_temp.roll(n, what, cardinality(words))];


-- Words

create temporary table word on commit drop as
select
    '{oak,ash,walnut,pine,beech,teak,rattan,linen,wool,leather,brass,steel,marble,terracotta,bamboo,felt}'::text[]
        as materials,
    '{calm,light,sturdy,slender,rounded,classic,modern,compact,generous,quiet,warm,foldable,hand-made,timeless}'::text[]
        as adjectives,
    '{dining table,coffee table,lounge chair,bar stool,bench,sideboard,bed frame,pendant lamp,floor lamp,candle holder,
      cooking pot,chopping board,jug,serving dish,throw,cushion,rug,tea towel,bathrobe,mirror,laundry basket,shelf,
      chest of drawers,coat rack,wardrobe,garden chair,planter,watering can,hammock,desk}'::text[]
        as things,
    '{Fjord,Skagen,Møn,Læsø,Ærø,Samsø,Vejle,Ribe,Lolland,Anholt,Sæby,Thy,Mols,Rømø,Fanø,Ebeltoft}'::text[]
        as places,
    '{Nordlys,Hansen & Søn,Havblik,Kvist,Strandgaard,Plet,Lindholm,Blæst,Træfolk,Ro,Østerbro Design,Form & Funktion,
      Vinterhus,Bølge,Skovgaard,Lygten,Mosaik,Grønbæk}'::text[]
        as brands,
    '{black,white,sand,moss green,ocean blue,terracotta,charcoal,cream,rust,dusty rose,mustard,natural}'::text[]
        as colors;

-- A few thousand sentences, of which every description takes four.
create temporary table sentence on commit drop as
select
    n as id,
    case pg_temp.roll(n, 1, 8)
        when 0 then 'The frame is made of ' || pg_temp.pick(n, 2, materials) || ' and finished by hand in a small'
            || ' workshop on ' || pg_temp.pick(n, 3, places) || '.'
        when 1 then 'A ' || pg_temp.pick(n, 2, adjectives) || ' piece that goes well with ' || pg_temp.pick(n, 3, materials)
            || ', ' || pg_temp.pick(n, 4, colors) || ' walls and long evenings.'
        when 2 then 'Wipe it with a damp cloth; the ' || pg_temp.pick(n, 2, materials) || ' grows more beautiful over the'
            || ' years and can be oiled again.'
        when 3 then 'Comes flat-packed with all fittings, and is put together in about ' || 5 + pg_temp.roll(n, 2, 40)
            || ' minutes without any tools.'
        when 4 then 'The ' || pg_temp.pick(n, 2, adjectives) || ' lines leave room for a ' || pg_temp.pick(n, 3, things)
            || ' beside it, even in a narrow hallway.'
        when 5 then 'Designed together with families who wanted something ' || pg_temp.pick(n, 2, adjectives)
            || ' that lasts longer than one move.'
        when 6 then 'It carries up to ' || 20 + pg_temp.roll(n, 2, 180) || ' kg, stands firmly on uneven floors and'
            || ' is tested for use at home and in cafés.'
        else 'Choose it in ' || pg_temp.pick(n, 2, colors) || ' for a soft look or in ' || pg_temp.pick(n, 3, colors)
            || ' if the ' || pg_temp.pick(n, 4, things) || ' should stand out.'
    end as text
from generate_series(0, 4095) as n, word;

create unique index on sentence (id);
analyze sentence;


-- Products

create table bench.item as
select
    n as id,
    'CF-' || lpad((n * 7919::bigint % 100000000)::text, 8, '0') as sku,
    initcap(pg_temp.pick(n, 10, adjectives)) || ' ' || pg_temp.pick(n, 11, things) || ' ' || pg_temp.pick(n, 12, places)
        || ' in ' || pg_temp.pick(n, 13, materials) as name,
    a.text || ' ' || b.text || ' ' || c.text || ' ' || d.text as description,
    (49 + pg_temp.roll(n, 14, 9000) + 0.95)::numeric(10, 2) as price,
    case when pg_temp.roll(n, 15, 5) > 0
        then (49 + pg_temp.roll(n, 14, 9000) + 0.95 + 10 * (1 + pg_temp.roll(n, 16, 90)))::numeric(10, 2)
    end as list_price,
    'https://images.shop.example/products/' || n % 1000 || '/' || n || '-large.jpg' as image,
    'https://shop.example/' || replace(pg_temp.pick(n, 11, things), ' ', '-') || '/' || pg_temp.pick(n, 10, adjectives)
        || '-' || pg_temp.pick(n, 13, materials) || '-' || n as url,
    array[
        1 + pg_temp.roll(n, 17, 12), 100 + pg_temp.roll(n, 18, 90), 1000 + pg_temp.roll(n, 19, 900)
    ]::integer[] as categories,
    pg_temp.pick(n, 20, brands) as brand,
    case when pg_temp.roll(n, 23, 2) = 0
        then array[pg_temp.pick(n, 21, colors), pg_temp.pick(n, 22, colors)]
        else array[pg_temp.pick(n, 21, colors)]
    end as color_names,
    pg_temp.roll(n, 24, 500) as stock,
    pg_temp.roll(n, 15, 5) > 0 as on_sale,
    pg_temp.roll(n, 25, 800) as reviews_amount,
    case when pg_temp.roll(n, 25, 800) > 0 then ((10 + pg_temp.roll(n, 26, 41)) / 10.0)::real end as reviews_avg,
    timestamptz '2019-01-01 00:00:00+00' + pg_temp.roll(n, 27, 157680000) * interval '1 second' as created_at,
    timestamptz '2024-06-01 00:00:00+00' + pg_temp.roll(n, 28, 47304000) * interval '1 second' as modified_at
from generate_series(1, :items) as n
cross join word
join sentence as a on a.id = pg_temp.roll(n, 30, 4096)
join sentence as b on b.id = pg_temp.roll(n, 31, 4096)
join sentence as c on c.id = pg_temp.roll(n, 32, 4096)
join sentence as d on d.id = pg_temp.roll(n, 33, 4096)
order by n;

alter table bench.item add primary key (id);
create index on bench.item (modified_at, id);

create view bench.products as
select
    id, sku, name, description, price, list_price, image, url, categories, brand, color_names, stock, on_sale,
    reviews_amount, reviews_avg, created_at, modified_at
from bench.item;
