"""Recognising a shop: which table is likely to hold what.

Pure: it looks at what the catalog says, never at the shop's rows. Keys and types count first, names second, and
every choice says why.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec

from app.catalog.tables import Column, Table
from app.catalog.vocabulary import (
    COLUMNS,
    NEVER,
    PREFIXES,
    TABLES,
    folded,
    is_of,
    singulars,
    table_strength,
    without_nouns,
    words,
)
from app.protocol.feeds import FEEDS

_Reasons = list[tuple[int, str]]
"""What speaks for a table, with how much it weighs."""


class Reference(msgspec.Struct, frozen=True):
    """A column that holds the key of a row of another table."""

    column: Column
    target: Table
    declared: bool

    @property
    def how(self) -> str:
        return "foreign key" if self.declared else "by its name, no foreign key is declared"


class Shop:
    """The tables of a database, their references and the table that is most likely to hold each thing."""

    def __init__(self, tables: tuple[Table, ...], schema: str) -> None:
        self.tables = tables
        self.schema = schema
        firsts = Counter(words(table.name)[0] for table in tables if len(words(table.name)) > 1)
        self._prefixes = frozenset(word for word, count in firsts.items() if count >= max(3, len(tables) / 2))
        self._by_place = {table.place: table for table in tables}
        self._by_id_name: dict[str, list[Table]] = {}
        for table in tables:
            for name in self._id_names(table):
                self._by_id_name.setdefault(name, []).append(table)
        self.references = {table.place: tuple(self._references(table)) for table in tables}
        self.carriers = tuple(self._carriers())
        self.categories_hint = {t.place for t in tables if self.strength(t, "categories")}
        self.products, self.products_why = self._best("products", self._product_reasons)
        self.categories, self.categories_why = self._best("categories", self._category_reasons)
        self.customers, self.customers_why = self._best("customers", self._customer_reasons)
        self.orders, self.orders_why = self._best("orders", self._order_reasons)
        self.pages, self.pages_why = self._best("pages", self._page_reasons)

    def strength(self, table: Table, kind: str) -> int:
        return table_strength(table.name, kind, self._prefixes)

    def reference(self, table: Table, target: Table | None) -> Reference | None:
        """How a table refers to another, the declared way first."""
        if target is None:
            return None
        found = [r for r in self.references[table.place] if r.target is target]
        return min(found, key=lambda r: (not r.declared, not r.column.not_null), default=None)

    def lines(self) -> tuple[Table, Reference, Reference] | None:
        """The table of order lines, with its references to the order and to the product."""
        found = []
        for table in self.tables:
            order, product = self.reference(table, self.orders), self.reference(table, self.products)
            if order and product and order.column != product.column and table not in (self.orders, self.products):
                score = self.strength(table, "lines") + 4 * (find(table, "quantity", ("product",)) is not None)
                if score >= 4:
                    found.append((score, order.declared + product.declared, table, order, product))
        if not found:
            return None
        best = max(found, key=lambda f: (f[0], f[1], f[2].rows))
        return best[2:]

    def join(self, left: Table, right: Table) -> tuple[Table, Reference, Reference] | None:
        """A table that does little else than join two others."""
        found = []
        for table in self.tables:
            first, second = self.reference(table, left), self.reference(table, right)
            if first and second and first.column != second.column and table not in (left, right):
                if find(table, "quantity") or NEVER & set(words(table.name)):
                    continue
                found.append((first.declared + second.declared, -len(table.columns), table, first, second))
        return max(found, key=lambda f: f[:2])[2:] if found else None

    def _best(
        self, kind: str, reasons: "Callable[[Table, int], _Reasons | None]"
    ) -> tuple[Table | None, tuple[str, ...]]:
        taken = [t for t in (getattr(self, name, None) for name in FEEDS) if t is not None]
        scored = []
        for table in self.tables:
            if table in taken or NEVER & set(words(table.name)):
                continue
            strength = self.strength(table, kind)
            found = reasons(table, strength)
            if found is None:
                continue
            score = strength + sum(points for points, _ in found)
            if score >= (6 if strength and kind != "customers" else 5):
                scored.append((score, strength, table, found))
        if not scored:
            return None, ()
        score, strength, table, found = max(scored, key=lambda s: (s[0], s[1], s[2].schema == "public", s[2].rows))
        why = (["its name"] if strength else []) + [text for points, text in found if points > 0]
        others = [str(t) for s, _, t, _ in sorted(scored, key=lambda s: -s[0]) if t is not table and s >= score - 2]
        if others:
            why.append(f"also possible: {', '.join(others[:3])}")
        return table, tuple(why)

    def _product_reasons(self, table: Table, strength: int) -> _Reasons | None:
        nouns = nouns_of("products")
        price, name = priced(table, "price", nouns), find(table, "name", nouns)
        sold = [carrier for carrier, target in self.carriers if target is table]
        linked = [r for r in self.references[table.place] if r.target.place in self.categories_hint]
        if not (price or name) or (not strength and not (price and name and sold)):
            return None
        found = [(1, f"{c.name} is like a name") for c in [name] if c]
        found += [(2, f"{c.name} is like a price") for c in [price] if c]
        found += [(1, f"{c.name} is like an article number") for c in [find(table, "sku", nouns)] if c]
        found += [(3, f"{carrier.name} refers to it, with a quantity") for carrier in sold[:1]]
        found += [(1, f"it refers to {r.target.name}") for r in linked[:1]]
        return found

    def _category_reasons(self, table: Table, strength: int) -> _Reasons | None:
        if not find(table, "name", nouns_of("categories")) or table.key is None:
            return None
        found = [(2, "its rows refer to each other") for r in self.references[table.place] if r.target is table][:1]
        if self.products:
            if joined := self.join(self.products, table):
                found.append((3, f"{joined[0].name} joins it to {self.products.name}"))
            elif reference := self.reference(self.products, table):
                found.append((3, f"{self.products.name} refers to it ({reference.how})"))
        if not strength and len(found) < 2:
            return None
        return found

    def _order_reasons(self, table: Table, strength: int) -> _Reasons | None:
        if self.strength(table, "lines") and any(self.carriers):
            return None
        found = []
        for lines, _ in self.carriers:
            to_order, to_product = self.reference(lines, table), self.reference(lines, self.products)
            if to_order and to_product and lines is not table:
                found = [(3, f"{lines.name} refers to it and to {to_product.target.name} ({to_order.how})")]
                break
        if not strength and not found:
            return None
        time = find(table, "time", nouns_of("orders"))
        customer = self.reference(table, self.customers)
        if not found and not time:
            return None
        found += [(1, f"{c.name} is like a time") for c in [time] if c]
        found += [(1, f"it refers to {r.target.name}") for r in [customer] if r]
        return found

    def _customer_reasons(self, table: Table, strength: int) -> _Reasons | None:
        nouns = nouns_of("customers")
        email, name = find(table, "email", nouns), find(table, "person", nouns) or find(table, "last_name", nouns)
        if not strength or not (email or name or strength >= 5):
            return None
        bought = [t for t in self.tables if self.strength(t, "orders") and self.reference(t, table) and t is not table]
        found = [(2, f"{c.name} is like an e-mail address") for c in [email] if c]
        found += [(1, f"{c.name} is like a name") for c in [name] if c]
        found += [(2, f"{t.name} refers to it") for t in bought[:1]]
        return found

    def _page_reasons(self, table: Table, strength: int) -> _Reasons | None:
        nouns = nouns_of("pages")
        title, text, url = find(table, "title", nouns), find(table, "text", nouns), find(table, "url", nouns)
        if not strength or not title or not text or priced(table, "price", nouns):
            return None
        found = [(1, f"{title.name} is like a title"), (2, f"{text.name} is like a text")]
        return found + [(1, f"{c.name} is like an address") for c in [url] if c]

    def _carriers(self) -> Iterator[tuple[Table, Table]]:
        """Tables with a quantity that refer to two others, as order lines do, with what they refer to."""
        for table in self.tables:
            targets = {r.target.place: r.target for r in self.references[table.place]}
            if len(targets) > 1 and find(table, "quantity", ("product",)) and not NEVER & set(words(table.name)):
                for target in targets.values():
                    yield table, target

    def _references(self, table: Table) -> Iterator[Reference]:
        declared = set()
        for key in table.foreign_keys:
            target = self._by_place.get((key.schema, key.table))
            if target is None or len(key.columns) != 1:
                continue
            column = table.column(key.columns[0])
            declared.add(key.columns[0])
            # A reference to something else than the key (a code, say) holds no id of the feed.
            if column is not None and target.key is not None and key.target_columns == target.primary_key:
                yield Reference(column, target, declared=True)
        for column in table.columns:
            if column.name in declared or (column.name,) == table.primary_key or column.is_array:
                continue
            target = self._named_target(table, column)
            if target is not None:
                yield Reference(column, target, declared=False)

    def _named_target(self, table: Table, column: Column) -> Table | None:
        """The table whose key a column is named for, where no foreign key says it."""
        name = folded(column.name)
        if table.key is not None and name in COLUMNS["parent"][1] and _same_type(column, table.key):
            return table
        found = [
            target
            for target in self._by_id_name.get(name, ())
            if target is not table and target.key is not None and _same_type(column, target.key)
        ]
        same = [target for target in found if target.schema == table.schema] or found
        return same[0] if len(same) == 1 else None

    def _id_names(self, table: Table) -> frozenset[str]:
        """What a column may be called that holds the key of a table: productid for shop_products."""
        if table.key is None:
            return frozenset()
        parts = words(table.name)
        skips = [n for n in range(len(parts)) if n == 0 or set(parts[:n]) <= PREFIXES | self._prefixes]
        forms = {form for n in skips for form in singulars("".join(parts[n:]))}
        names = {form + suffix for form in forms for suffix in ("id", "nr", "no", "nummer")}
        own = folded(table.key.name)
        return frozenset(names | ({own} - {"", "id", "nr", "no", "nummer", "code", "key", "uuid"}))


def _same_type(one: Column, other: Column) -> bool:
    return one.type == other.type or any(is_of(one.type, f) and is_of(other.type, f) for f in ("integer", "text"))


def nouns_of(kind: str) -> tuple[str, ...]:
    return tuple(sorted(TABLES[kind], key=len, reverse=True))


def find(table: Table, kind: str, nouns: Iterable[str] = ()) -> Column | None:
    """The column that is most likely to hold something: of a type that can, by the likeliest name."""
    family, names = COLUMNS[kind]
    nouns = tuple(nouns)
    candidates = [c for c in table.columns if not c.is_array and is_of(c.type, family)]
    forms: dict[str, Column] = {}
    for column in candidates:
        forms.setdefault(folded(column.name), column)
    for column in candidates:
        for form in without_nouns(folded(column.name), nouns):
            forms.setdefault(form, column)
    return next((forms[name] for name in names if name in forms), None)


_CENTS = ("incents", "cents", "cent", "inoere", "oere", "ore")


def priced(table: Table, kind: str, nouns: Iterable[str] = ()) -> Column | None:
    """A column with a price, or with one in the smallest coin, as its name says."""
    found = find(table, kind, nouns)
    if found is not None:
        return found
    names = COLUMNS[kind][1]
    nouns = tuple(nouns)
    for column in table.columns:
        if in_cents(column) and not column.is_array:
            forms = set(without_nouns(folded(column.name), nouns))
            if any(form.removesuffix(cents) in names for form in forms for cents in _CENTS):
                return column
    return None


def in_cents(column: Column) -> bool:
    return is_of(column.type, "integer") and folded(column.name).endswith(_CENTS)
