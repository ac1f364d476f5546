"""Drafts of the views that fill the feeds, from the tables that were recognised.

A starting point for a person. What no column can fill becomes a reference to a column that does not exist
("TODO: …"), so that an unfinished view can't be created: never a guess that looks finished.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator

import msgspec

from app.catalog.recognise import Reference, Shop, find, in_cents, nouns_of, priced
from app.catalog.tables import Column, ForeignKey, Table, identifier, shown
from app.catalog.vocabulary import ACTIVE, HIERARCHY, INACTIVE, STATE, folded, is_of, without_nouns, words
from app.protocol.feeds import REQUIRED, FeedName

TODO = '"TODO'
"""How everything begins that a person must replace: a quoted identifier that no shop has."""


class Attribute(msgspec.Struct, frozen=True):
    """A column of a view: an attribute, what fills it, and why."""

    name: str
    sql: str
    why: str
    remark: str = ""

    @property
    def is_open(self) -> bool:
        return TODO in self.sql


class View(msgspec.Struct, frozen=True):
    """What could fill a feed. Without a table nothing was recognised."""

    feed: FeedName
    table: Table | None
    alias: str
    why: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    remarks: tuple[str, ...] = ()
    """What a person must decide about the rows, as lines of SQL comments."""
    unused: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    """Statements that create the indexes which paging and the view's subqueries need and do not have."""

    @property
    def open(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes if attribute.is_open)

    @property
    def has_modified_at(self) -> bool:
        return any(attribute.name == "modified_at" for attribute in self.attributes)


def draft(tables: Iterable[Table], schema: str) -> dict[FeedName, View]:
    """What could fill each feed. `schema` is where the views will live, with the function that completes addresses."""
    shop = Shop(tuple(tables), schema)
    return {
        "products": _products(shop),
        "categories": _categories(shop),
        "orders": _orders(shop),
        "customers": _customers(shop),
        "pages": _pages(shop),
    }


def typical(schema: str) -> dict[FeedName, View]:
    """The views of a shop as many are, for who has no database at hand: every table is still to be named."""
    return draft(_TYPICAL, schema)


class _Builder:
    """Collects the attributes of a view, in order."""

    def __init__(self, shop: Shop, feed: FeedName, table: Table, alias: str, why: tuple[str, ...]) -> None:
        self.shop = shop
        self.feed = feed
        self.table = table
        self.alias = alias
        self.nouns = nouns_of(feed)
        self._why = why
        self._attributes: list[Attribute] = []
        self._indexes: list[str] = []
        self._add_id()

    def ref(self, column: Column) -> str:
        return _ref(self.alias, column)

    def add(self, name: str, sql: str, why: str, remark: str = "") -> None:
        self._attributes.append(Attribute(name, sql, shown(why), shown(remark)))

    def open(self, name: str, why: str = "no column fits") -> None:
        """A required attribute that nothing fills: a column that does not exist."""
        example = _WANTED[self.feed][name].format(
            s=identifier(self.shop.schema), a=self.alias, id=identifier(self.table.key.name) if self.table.key else "id"
        )
        self.add(name, f'{self.alias}.{TODO}: {name}"', why, example)

    def column(self, name: str, column: Column | None, *, empty: str = "") -> None:
        """An attribute straight from a column. `empty` stands for NULL where the attribute is required."""
        if column is None:
            if name in REQUIRED[self.feed]:
                self.open(name)
            return
        if name in REQUIRED[self.feed] and empty and not column.not_null:
            self.add(name, f"coalesce({self.ref(column)}, {empty})", column.name)
        else:
            self.add(name, self.ref(column), column.name, self._null_remark(name, column))

    def price(self, name: str, column: Column | None) -> None:
        if column is None:
            self.column(name, None)
            return
        sql, remark = _price(self.alias, column)
        self.add(name, sql, column.name, remark or self._null_remark(name, column))

    def address(self, name: str, kind: str, column: Column | None) -> None:
        """A full URL from a column that holds a part of it, or all."""
        if column is None:
            self.column(name, None)
            return
        self.add(name, self.addressed(kind, self.ref(column)), column.name, self._null_remark(name, column))

    def addressed(self, kind: str, sql: str) -> str:
        return f"{identifier(self.shop.schema)}.address('{kind}', {sql})"

    def index(self, table: Table, *columns: Column) -> None:
        """Ask for an index, unless there is one."""
        names = tuple(column.name for column in columns)
        if not any(index[: len(names)] == names for index in table.indexes):
            listed = ", ".join(identifier(name) for name in names)
            self._indexes.append(f"create index concurrently on {table} ({listed});")

    def view(self) -> View:
        self._add_modified_at()
        return View(
            feed=self.feed,
            table=self.table,
            alias=self.alias,
            why=tuple(shown(text) for text in self._why),
            attributes=tuple(self._attributes),
            remarks=tuple(shown(remark) for remark in self._remarks()),
            unused=tuple(shown(name) for name in self._unused()),
            indexes=tuple(self._indexes),
        )

    def _add_id(self) -> None:
        key = self.table.key
        if key is None:
            columns = ", ".join(self.table.primary_key)
            self.open("id", f"its primary key is ({columns})" if columns else "it has no primary key")
        elif is_of(key.type, "integer") or key.type == "uuid" or (is_of(key.type, "text") and key.type != "name"):
            self.add("id", self.ref(key), f"{key.name}, the primary key")
        elif key.type == "numeric":
            name = identifier(key.name)
            self.add("id", f"{self.ref(key)}::bigint", f"{key.name}, the primary key, as a whole number")
            self._indexes.append(f"create unique index concurrently on {self.table} (({name}::bigint));")
        else:
            self.open("id", f"the primary key {key.name} is of type {key.type}")

    def _add_modified_at(self) -> None:
        column = find(self.table, "modified_at", self.nouns)
        if column is not None and column.type in ("timestamptz", "timestamp"):
            self.add("modified_at", self.ref(column), column.name)
            if self.table.key is not None:
                self.index(self.table, column, self.table.key)

    def _null_remark(self, name: str, column: Column) -> str:
        if name in REQUIRED[self.feed] and not column.not_null:
            return "where it is NULL the item is left out, and reported"
        return ""

    def _remarks(self) -> Iterator[str]:
        conditions = list(filter(None, (self._condition(column) for column in self.table.columns)))
        if conditions:
            yield "REVIEW: should every row be served? If not, one of these may be what you want:"
            yield from (f"where {condition}" for condition in conditions)

    def _condition(self, column: Column) -> str:
        forms = set(without_nouns(folded(column.name), self.nouns))
        name = self.ref(column)
        if forms & ACTIVE:
            return name if column.type == "bool" else f"{name} = …"
        if forms & INACTIVE:
            if is_of(column.type, "time"):
                return f"{name} is null"
            return f"not {name}" if column.type == "bool" else f"{name} = …"
        if forms & STATE:
            return f"{name} = …" if column.type not in ("bool", "jsonb", "json") else ""
        return ""

    def _unused(self) -> Iterator[str]:
        all_sql = " ".join(attribute.sql for attribute in self._attributes)
        for column in self.table.columns:
            name = re.escape(identifier(column.name))
            if not re.search(rf"\b({self.alias}|child)\.{name}(?![\w$])", all_sql):
                yield column.name


def _ref(alias: str, column: Column) -> str:
    return f"{alias}.{identifier(column.name)}"


def _price(alias: str, column: Column) -> tuple[str, str]:
    """A price as a number, and what to look at."""
    name = _ref(alias, column)
    if in_cents(column):
        return f"round({name} / 100.0, 2)", ""
    if column.type == "money":
        return f"{name}::numeric", ""
    if is_of(column.type, "integer"):
        return name, f"REVIEW: a whole number. If it counts cents: round({name} / 100.0, 2)"
    return name, ""


def _laid_out(sql: str) -> str:
    return textwrap.dedent(sql).strip()


def _unrecognised(feed: FeedName) -> View:
    return View(feed, None, "", (), ())


def _products(shop: Shop) -> View:
    table = shop.products
    if table is None:
        return _unrecognised("products")
    view = _Builder(shop, "products", table, "p", shop.products_why)
    nouns = view.nouns
    view.column("name", find(table, "name", nouns))
    view.column("description", find(table, "description", nouns), empty="''")
    price = priced(table, "price", nouns)
    view.price("price", price)
    list_price = priced(table, "list_price", nouns)
    if list_price is not None and list_price != price:
        view.price("list_price", list_price)
    _add_image(view)
    view.address("url", "product", find(table, "url", nouns))
    _add_categories(view)
    _add_brand(view)
    for name in ("sku", "stock", "reviews_amount", "reviews_avg"):
        view.column(name, find(table, name, nouns))
    view.column("created_at", find(table, "created_at", nouns))
    return view.view()


def _add_image(view: _Builder) -> None:
    table = view.table
    column = find(table, "image", view.nouns)
    if column is not None:
        view.address("image", "image", column)
        return
    for column in table.columns:
        if column.is_array and is_of(column.type, "text") and folded(column.name) in _IMAGE_LISTS:
            view.add("image", view.addressed("image", f"{view.ref(column)}[1]"), f"the first of {column.name}")
            return
    for images in view.shop.tables:
        reference = view.shop.reference(images, table)
        file = find(images, "image_file", nouns_of("images"))
        if not (reference and file and view.shop.strength(images, "images")):
            continue
        by = ", ".join(_ref("i", c) for c in (find(images, "position"), images.key) if c)
        sql = f"""
            (
                select {view.addressed("image", _ref("i", file))}
                from {images} as i
                where {_ref("i", reference.column)} = {_key_ref(view)}
                order by {by or _ref("i", file)}
                limit 1
            )
        """  # noqa: S608 (identifiers are quoted)
        view.add("image", _laid_out(sql), f"the first of {images.name} ({reference.how})")
        view.index(images, reference.column)
        return
    view.open("image")


_IMAGE_LISTS = {
    "images",
    "imageurls",
    "imagepaths",
    "pictures",
    "photos",
    "billeder",
    "bilder",
    "afbeeldingen",
    "fotos",
}


def _key_ref(view: _Builder) -> str:
    """The key of the view's table: what references point to is a table with a key."""
    return view.ref(view.table.key) if view.table.key is not None else f'{view.alias}.{TODO}: id"'


def _add_categories(view: _Builder) -> None:
    table, categories = view.table, view.shop.categories
    joined = view.shop.join(table, categories) if categories is not None else None
    reference = view.shop.reference(table, categories)
    if joined:
        link, to_product, to_category = joined
        category = _ref("j", to_category.column)
        sql = f"""
            array(
                select {category}
                from {link} as j
                where {_ref("j", to_product.column)} = {_key_ref(view)}
                order by {category}
            )
        """  # noqa: S608 (identifiers are quoted)
        view.add("categories", _laid_out(sql), f"{link.name} joins the two ({to_product.how})")
        view.index(link, to_product.column)
        return
    if reference:
        name = view.ref(reference.column)
        sql = f"array[{name}]" if reference.column.not_null else f"array_remove(array[{name}], null)"
        view.add("categories", sql, f"{reference.column.name} refers to {reference.target.name} ({reference.how})")
        return
    for column in table.columns:
        if column.is_array and folded(column.name) in ("categories", "categoryids", "kategorier", "kategorien"):
            view.column("categories", column, empty="'{}'")
            return
    view.open("categories", "nothing leads from a product to its categories")


def _add_brand(view: _Builder) -> None:
    column = find(view.table, "brand", view.nouns)
    if column is not None:
        view.column("brand", column)
        return
    for reference in view.shop.references[view.table.place]:
        brand = reference.target
        name = find(brand, "name", nouns_of("brands")) if view.shop.strength(brand, "brands") else None
        if name is not None and brand.key is not None:
            where = f"{_ref('b', brand.key)} = {view.ref(reference.column)}"
            view.add(
                "brand",
                f"(select {_ref('b', name)} from {brand} as b where {where})",  # noqa: S608 (identifiers are quoted)
                f"{name.name} of {brand.name} ({reference.how})",
            )
            return


def _categories(shop: Shop) -> View:
    table = shop.categories
    if table is None or table.key is None:
        return _unrecognised("categories")
    view = _Builder(shop, "categories", table, "c", shop.categories_why)
    view.column("name", find(table, "name", view.nouns))
    view.address("url", "category", find(table, "url", view.nouns))
    parent = shop.reference(table, table)
    tree = [column.name for column in table.columns if folded(column.name) in HIERARCHY]
    if parent is not None:
        child = _ref("child", table.key)
        sql = f"""
            array(
                select {child}
                from {table} as child
                where {_ref("child", parent.column)} = {view.ref(table.key)}
                order by {child}
            )
        """  # noqa: S608 (identifiers are quoted)
        view.add("subcategories", _laid_out(sql), f"{parent.column.name} refers to the parent ({parent.how})")
        view.index(table, parent.column)
    elif tree:
        view.open("subcategories", f"the tree is kept in {', '.join(tree)}, without a column for the parent")
    else:
        kind = "bigint" if is_of(table.key.type, "integer") else "text"
        view.add(
            "subcategories",
            f"array[]::{kind}[]",
            "none: no column refers to a parent",
            "no column refers to a parent category: they have no subcategories",
        )
    view.column("description", find(table, "description", view.nouns))
    view.address("image", "image", find(table, "image", view.nouns))
    return view.view()


def _orders(shop: Shop) -> View:
    table = shop.orders
    if table is None:
        return _unrecognised("orders")
    view = _Builder(shop, "orders", table, "o", shop.orders_why)
    lines = shop.lines()
    if lines is None:
        view.open("products", "no table refers to both orders and products")
    else:
        _add_lines(view, *lines)
    view.column("time", find(table, "time", view.nouns))
    customer = shop.reference(table, shop.customers)
    if customer is not None:
        why = f"{customer.column.name} refers to {customer.target.name} ({customer.how})"
        view.add("customer", view.ref(customer.column), why)
    email = find(table, "email", (*view.nouns, *nouns_of("customers")))
    if email is not None:
        view.column("email", email)
    elif customer is not None and customer.target.key is not None:
        email = find(customer.target, "email", nouns_of("customers"))
        if email is not None:
            where = f"{_ref('k', customer.target.key)} = {view.ref(customer.column)}"
            sql = f"(select {_ref('k', email)} from {customer.target} as k where {where})"  # noqa: S608 (identifiers are quoted)
            view.add("email", sql, f"{email.name} of {customer.target.name}")
    return view.view()


def _add_lines(view: _Builder, lines: Table, to_order: Reference, to_product: Reference) -> None:
    nouns = (*nouns_of("lines"), *nouns_of("products"), *nouns_of("orders"))
    quantity, price = find(lines, "quantity", nouns), priced(lines, "line_price", nouns)
    remarks = []
    quantity_sql, price_sql = f'l.{TODO}: quantity"', f'l.{TODO}: price of one"'
    if quantity is not None:
        quantity_sql = _ref("l", quantity)
        if not is_of(quantity.type, "integer"):
            remarks.append(f"REVIEW: Clerk expects whole numbers; {quantity.name} is {quantity.type}")
    if price is not None:
        price_sql, remark = _price("l", price)
        remarks += [remark] if remark else []
    position = find(lines, "position", nouns) or (lines.key if lines.key != to_product.column else None)
    ordered = _ref("l", position or to_product.column)
    product = _ref("l", to_product.column)
    where = f"{_ref('l', to_order.column)} = {_key_ref(view)}"
    if not to_product.column.not_null:
        where += f" and {product} is not null"
    sql = f"""
        coalesce(
            (
                select json_agg(
                    json_build_object('id', {product}, 'quantity', {quantity_sql}, 'price', {price_sql})
                    order by {ordered}
                )
                from {lines} as l
                where {where}
            ),
            '[]'
        )
    """  # noqa: S608 (identifiers are quoted)
    view.add("products", _laid_out(sql), f"{lines.name} refers to both ({to_order.how})", "; ".join(remarks))
    view.index(lines, to_order.column)


def _customers(shop: Shop) -> View:
    table = shop.customers
    if table is None:
        return _unrecognised("customers")
    view = _Builder(shop, "customers", table, "c", shop.customers_why)
    view.column("email", find(table, "email", view.nouns))
    first, last = find(table, "first_name", view.nouns), find(table, "last_name", view.nouns)
    name = find(table, "person") or (None if first and last else find(table, "person", view.nouns))
    if name is not None and folded(name.name) != "username":
        view.column("name", name)
    elif first is not None and last is not None:
        sql = f"nullif(concat_ws(' ', {view.ref(first)}, {view.ref(last)}), '')"
        view.add("name", sql, f"{first.name}, {last.name}")
    for attribute in ("subscribed", "zip", "gender", "age", "is_b2b"):
        view.column(attribute, find(table, attribute, view.nouns))
    return view.view()


def _pages(shop: Shop) -> View:
    table = shop.pages
    if table is None:
        return _unrecognised("pages")
    view = _Builder(shop, "pages", table, "p", shop.pages_why)
    kind = find(table, "type", view.nouns)
    if kind is not None:
        view.column("type", kind, empty="'page'")
    else:
        blog = {"blog", "post", "posts", "news", "nyheder", "article", "articles", "indlaeg"} & set(words(table.name))
        word = "blog" if blog else "page"
        view.add("type", f"'{word}'", "one word for all of them", "one word for all of them, yours to choose")
    view.address("url", "page", find(table, "url", view.nouns))
    view.column("title", find(table, "title", view.nouns))
    view.column("text", find(table, "text", view.nouns), empty="''")
    view.address("image", "image", find(table, "image", view.nouns))
    return view.view()


_WANTED: dict[FeedName, dict[str, str]] = {
    "products": {
        "id": "a whole number or text, unique and never NULL",
        "name": "text",
        "description": "text, '' where there is none",
        "price": "a number",
        "image": "a full URL, e.g. {s}.address('image', {a}.file_name)",
        "url": "a full URL, e.g. {s}.address('product', {a}.{id}::text)",
        "categories": "an array of category ids, '{{}}'::bigint[] where there are none",
        "created_at": "when it was added, or a fixed time where nobody knows, e.g. timestamptz '2020-01-01'",
    },
    "categories": {
        "id": "a whole number or text, unique and never NULL",
        "name": "text",
        "url": "a full URL, e.g. {s}.address('category', {a}.{id}::text)",
        "subcategories": "an array of category ids, '{{}}'::bigint[] where there are none",
    },
    "orders": {
        "id": "a whole number or text, unique and never NULL",
        "products": """json: [{{"id": …, "quantity": …, "price": price of one}}, …]""",
        "time": "when it was placed",
    },
    "customers": {
        "id": "a whole number or text, unique and never NULL",
        "email": "text",
    },
    "pages": {
        "id": "a whole number or text, unique and never NULL",
        "type": "text, e.g. 'page' or 'blog'",
        "url": "a full URL, e.g. {s}.address('page', {a}.{id}::text)",
        "title": "text",
        "text": "text",
    },
}
"""What each required attribute must be, for who fills it in."""


def _table(name: str, columns: str, *references: tuple[str, str]) -> Table:
    """A table of the typical shop. Its schema is what a person must replace."""
    described = tuple(
        Column(words[0], words[1], not_null=words[-1] == "!") for words in map(str.split, columns.split(","))
    )
    keys = tuple(ForeignKey((column,), "TODO", target, ("id",)) for column, target in references)
    indexes = (("id",), ("modified_at", "id"), *((column,) for column, _ in references))
    key = ("id",) if described[0].name == "id" else ()
    return Table("TODO", name, described, key, keys, indexes)


_TYPICAL = (
    _table(
        "product",
        "id int8 !, name text !, description text, price numeric !, list_price numeric, image_file text !, slug text !,"
        " brand text, sku text, stock int4, created_at timestamptz !, modified_at timestamptz",
    ),
    _table(
        "category",
        "id int8 !, parent_id int8, name text !, slug text !, modified_at timestamptz",
        ("parent_id", "category"),
    ),
    _table(
        "product_category",
        "product_id int8 !, category_id int8 !",
        ("product_id", "product"),
        ("category_id", "category"),
    ),
    _table("customer", "id int8 !, email text !, name text, subscribed bool, modified_at timestamptz"),
    _table(
        "orders",
        "id int8 !, customer_id int8, email text, created_at timestamptz !, modified_at timestamptz",
        ("customer_id", "customer"),
    ),
    _table(
        "order_line",
        "id int8 !, order_id int8 !, product_id int8 !, quantity int4 !, price numeric !",
        ("order_id", "orders"),
        ("product_id", "product"),
    ),
    _table("page", "id int8 !, type text !, slug text !, title text !, text text !, modified_at timestamptz"),
)
