"""What shops call their tables and columns, in English, German, Danish and Dutch.

Names are compared without case, separators and accents: `product_name`, `ProductName` and `productName` are one
name, `Mærke` and `maerke` another. They are hints only; keys and types of the database weigh more.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

Family = Literal["text", "number", "integer", "time", "bool"]

_TYPES: dict[Family, frozenset[str]] = {
    "text": frozenset({"text", "varchar", "bpchar", "citext", "name"}),
    "integer": frozenset({"int2", "int4", "int8"}),
    "number": frozenset({"int2", "int4", "int8", "numeric", "float4", "float8", "money"}),
    "time": frozenset({"timestamptz", "timestamp", "date"}),
    "bool": frozenset({"bool"}),
}


def is_of(type: str, family: Family) -> bool:
    return type in _TYPES[family]


_LETTERS = str.maketrans(
    {"æ": "ae", "ø": "oe", "å": "aa", "ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Æ": "Ae", "Ø": "Oe", "Å": "Aa"}
    | {"Ä": "Ae", "Ö": "Oe", "Ü": "Ue"}
)


def words(identifier: str) -> tuple[str, ...]:
    """The words of an identifier: `tblOrderItems` is tbl, order, items."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", identifier).translate(_LETTERS))
    ascii_only = plain.encode("ascii", "ignore").decode()
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", ascii_only))


def folded(identifier: str) -> str:
    """An identifier as names are compared: `Product_ID` is productid."""
    return "".join(words(identifier))


_PLURALS = (("ies", "y"), *((ending, "") for ending in ("s", "es", "r", "er", "n", "en", "e")))


def singulars(name: str) -> Iterator[str]:
    """A folded name and what its singular may be, in any of the languages."""
    yield name
    for plural, singular in (
        ("ies", "y"),
        ("s", ""),
        ("es", ""),
        ("r", ""),
        ("er", ""),
        ("n", ""),
        ("en", ""),
        ("e", ""),
    ):
        if name.endswith(plural) and len(name) > len(plural) + 2:
            yield name.removesuffix(plural) + singular


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _strong(strength: int, text: str) -> dict[str, int]:
    return dict.fromkeys(text.split(), strength)


def _column(family: Family, text: str) -> tuple[Family, tuple[str, ...]]:
    return family, tuple(text.split())


TABLES: dict[str, dict[str, int]] = {
    "products": _strong(
        6,
        """
        product products produkt produkte produkter produkten producten vare varer ware waren catalogproduct
        catalogproducts
    """,
    )
    | _strong(
        4,
        """
        item items article articles artikel artikler artikelen goods catalogitem catalogitems
    """,
    ),
    "categories": _strong(
        6,
        """
        category categories productcategory productcategories kategori kategorier kategorie kategorien
        categorie categorien categorieen varegruppe varegrupper produktgruppe produktgrupper produktgruppen
        warengruppe warengruppen artikelgruppe artikelgruppen produktkategori produktkategorier
        produktkategorie produktkategorien productgroep productgroepen productgroup productgroups
        varekategori varekategorier productcategorie productcategorieen
    """,
    )
    | _strong(4, "collection collections taxon taxons department departments"),
    "orders": _strong(
        6,
        """
        order orders ordre ordrer salesorder salesorders customerorder customerorders bestellung
        bestellungen auftrag auftraege bestelling bestellingen orderheader orderheaders ordrehoved
        webshoporder webshoporders kundenauftrag
    """,
    )
    | _strong(4, "sale sales salg"),
    "customers": _strong(
        6,
        """
        customer customers kunde kunder kunden klant klanten client clients shopper shoppers
    """,
    )
    | _strong(
        3,
        """
        user users authuser account accounts member members bruger brugere benutzer nutzer gebruiker
        gebruikers buyer buyers
    """,
    ),
    "pages": _strong(
        6,
        """
        page pages cmspage cmspages contentpage contentpages flatpage flatpages staticpage side sider seite
        seiten pagina paginas cmsside cmssider cmsseite cmsseiten
    """,
    )
    | _strong(
        5,
        """
        post posts blogpost blogposts blogentry blogentries blog blogs blogindlaeg indlaeg cms beitraege
    """,
    )
    | _strong(4, "article articles artikel artikler news nyhed nyheder nachrichten nieuws content"),
    "lines": _strong(
        6,
        """
        orderline orderlines orderitem orderitems orderdetail orderdetails orderproduct orderproducts
        lineitem lineitems ordrelinje ordrelinjer ordrelinie ordrelinier bestellposition orderrow orderrows
        bestellpositionen auftragsposition auftragspositionen bestelregel bestelregels orderregel
        orderregels salesorderline salesorderitem saleline salelines
    """,
    ),
    "brands": _strong(
        6,
        """
        brand brands manufacturer manufacturers maerke maerker producent producenter marke marken hersteller
        merk merken fabrikant fabrikanten productbrand vendor vendors
    """,
    ),
    "images": _strong(
        6,
        """
        productimage productimages image images productphoto productphotos productpicture productpictures
        productmedia media billede billeder produktbillede produktbilleder varebilleder bild bilder
        produktbild produktbilder artikelbilder afbeelding afbeeldingen productafbeeldingen photo photos
        picture pictures
    """,
    ),
}
"""Names of tables by what they hold, with how much a name says: 6 much, 3 little."""

PREFIXES = _set("""
    tbl tab t dbo app apps shop webshop store catalog catalogue core main my wp wc woocommerce oc ps ecommerce
    ecom commerce sales product products order orders magento sylius spree django cms blog content data public
    account accounts customer customers ordre kunde vare produkt base erp
""")
"""Words in front of a table's name that say nothing against it."""

NEVER = _set("""
    cart carts basket baskets kurv kurve warenkorb winkelwagen winkelmand wishlist wishlists oenskeliste quote
    quotes invoice invoices shipment shipments return returns refund refunds purchase supplier suppliers backup
    bak old tmp temp archive archived history log logs audit staging stg import deleted test related revision
    revisions version versions draft drafts
""")
"""Words that tell of another thing, however the rest of the table looks."""

COLUMNS: dict[str, tuple[Family, tuple[str, ...]]] = {
    "name": _column(
        "text",
        """
        name title productname navn titel varenavn bezeichnung naam displayname label varetekst productnaam
        betegnelse
    """,
    ),
    "description": _column(
        "text",
        """
        description descriptionplaintext longdescription fulldescription body bodyhtml descriptionhtml
        content details beskrivelse langbeskrivelse beschreibung langbeschreibung langtext beschrijving
        omschrijving shortdescription kortbeskrivelse kurzbeschreibung summary
    """,
    ),
    "price": _column(
        "number",
        """
        price currentprice sellingprice salesprice unitprice baseprice pris salgspris stykpris enhedspris
        preis verkaufspreis einzelpreis bruttopreis prijs verkoopprijs priceincltax pricegross regularprice
    """,
    ),
    "list_price": _column(
        "number",
        """
        listprice compareatprice msrp rrp regularprice originalprice oldprice recommendedprice retailprice
        vejledendepris foerpris normalpris listepris uvp listenpreis streichpreis adviesprijs vanprijs
    """,
    ),
    "image": _column(
        "text",
        """
        imageurl image mainimage mainimageurl primaryimage picture pictureurl photo photourl img imgurl
        imagepath imagefile imagefilename imagename featuredimage coverimage thumbnail thumbnailurl thumb
        billede billedurl billedeurl billedfil bild bildurl bilddatei bildpfad afbeelding afbeeldingurl foto
    """,
    ),
    "url": _column(
        "text",
        """
        url producturl link permalink canonicalurl slug urlslug urlkey handle seourl path sti urlpath
        friendlyurl seoname postname pfad pad adresse
    """,
    ),
    "sku": _column(
        "text",
        """
        sku productnumber articlenumber itemnumber productcode itemcode articlecode partnumber varenr
        varenummer artikelnummer artikelnr artnr code
    """,
    ),
    "stock": _column(
        "number",
        """
        stock stockquantity stockqty stocklevel unitsinstock quantityinstock instock qtyinstock inventory
        inventoryquantity inventorycount onhand quantityonhand available availablequantity lager lagerantal
        lagerbeholdning paalager antalpaalager bestand lagerbestand lagermenge voorraad quantity qty
    """,
    ),
    "brand": _column(
        "text",
        """
        brand brandname manufacturer maerke producent marke hersteller merk fabrikant vendor
    """,
    ),
    "reviews_amount": _column("integer", "reviewcount reviewscount ratingcount numreviews reviewsamount"),
    "reviews_avg": _column("number", "reviewaverage averagerating ratingaverage avgrating reviewsavg"),
    "created_at": _column(
        "time",
        """
        dategmt postdategmt datecreatedgmt createdat created datecreated createddate createdon creationdate
        creationtime dateadded addedat insertedat createdate oprettet oprettetdato oprettelsesdato
        oprettetden dato erstellt erstelltam erstellungsdatum angelegt angelegtam aangemaakt aangemaaktop
        aanmaakdatum publishedat publishdate pubdate postdate
    """,
    ),
    "modified_at": _column(
        "time",
        """
        modifiedgmt postmodifiedgmt dateupdatedgmt modifiedat updatedat modified updated lastmodified
        lastupdated lastupdate datemodified dateupdated modifieddate updateddate updatedon modifiedon
        modifiedtime updatetime changedat changed writedate postmodified aendret aendretdato sidstaendret
        opdateret sidstopdateret opdateretdato geaendert geaendertam aenderungsdatum aktualisiert
        aktualisiertam letzteaenderung gewijzigd gewijzigdop bijgewerkt bijgewerktop wijzigingsdatum
    """,
    ),
    "time": _column(
        "time",
        """
        datecreatedgmt orderedat orderdate orderdatetime placedat dateplaced purchasedat purchasedate
        ordertime orderplacedat ordredato bestilt bestiltdato bestilldato bestelltam bestelldatum
        auftragsdatum besteldatum besteldop date time datum dato createdat created datecreated createdon
        createddate oprettet erstellt erstelltam aangemaakt aangemaaktop dateadded insertedat
    """,
    ),
    "email": _column(
        "text",
        """
        email emailaddress mail mailaddress mailadresse emailadresse emailadres customeremail billingemail
        useremail contactemail guestemail epost
    """,
    ),
    "person": _column(
        "text",
        """
        name fullname displayname customername contactname navn fuldenavn kundenavn naam vollername
        kundenname klantnaam
    """,
    ),
    "first_name": _column("text", "firstname givenname forename fornavn vorname voornaam"),
    "last_name": _column("text", "lastname surname familyname efternavn nachname achternaam"),
    "subscribed": _column(
        "bool",
        """
        subscribed newsletter newslettersubscribed issubscribed subscribedtonewsletter acceptsmarketing
        optin newsletteroptin marketingconsent nyhedsbrev nieuwsbrief
    """,
    ),
    "zip": _column("text", "zip zipcode postalcode postcode postnr postnummer plz postleitzahl"),
    "gender": _column("text", "gender sex koen geschlecht geslacht"),
    "age": _column("integer", "age alder leeftijd"),
    "is_b2b": _column("bool", "isb2b b2b isbusiness erhverv zakelijk"),
    "quantity": _column(
        "number",
        """
        quantity qty units antal menge anzahl aantal quantityordered orderedquantity qtyordered amount count
        stueck
    """,
    ),
    "line_price": _column(
        "number",
        """
        unitprice price priceeach itemprice singleprice saleprice unitpriceincltax finalprice stykpris
        enhedspris pris einzelpreis stueckpreis preis stukprijs prijsperstuk prijs
    """,
    ),
    "title": _column("text", "title name headline heading titel overskrift navn ueberschrift naam posttitle"),
    "text": _column(
        "text",
        """
        text body content html bodyhtml contenthtml bodytext article tekst indhold broedtekst inhalt inhoud
        postcontent description
    """,
    ),
    "type": _column("text", "type pagetype posttype contenttype kind art"),
    "position": _column(
        "integer",
        """
        position sortorder sort displayorder ordering rank sequence linenumber lineno sortering
    """,
    ),
    "image_file": _column(
        "text",
        """
        url imageurl image src path file filename original imagepath href sti fil datei pfad bestand
    """,
    ),
    "parent": _column(
        "text",
        """
        parentid parent parentcategoryid parentcategory overordnet overordnetid overkategori overkategoriid
        foraelder foraelderid elternid oberkategorie oberkategorieid uebergeordnet bovenliggend
        bovenliggendeid hoofdcategorie hoofdcategorieid ouderid
    """,
    ),
}
"""Names of columns by what they hold, the likeliest first, and the family of types that can hold it."""

ACTIVE = _set("""
    active isactive enabled isenabled published ispublished visible isvisible online isonline aktiv eraktiv
    synlig istaktiv sichtbar actief zichtbaar ispublic
""")
INACTIVE = _set("""
    deleted isdeleted deletedat discontinued isdiscontinued archived isarchived archivedat disabled isdisabled
    hidden slettet slettetden udgaaet geloescht geloeschtam verwijderd verwijderdop
""")
STATE = _set("status state orderstatus poststatus productstatus tilstand zustand financialstatus")
HIERARCHY = _set("depth level lft lftnode rght rgt numchild treeid niveau")
"""Columns of a tree that is kept without a parent column."""


def without_nouns(name: str, nouns: Iterable[str]) -> Iterator[str]:
    """A folded column name, and what is left of it without the noun of its table in front: productname, name."""
    yield name
    for noun in nouns:
        if name.startswith(noun) and len(name) > len(noun) + 1:
            yield name.removeprefix(noun)


def table_strength(name: str, kind: str, shared_prefixes: frozenset[str]) -> int:
    """How much a table's name says for what it may hold; 0 for nothing.

    The longest known ending decides: order_items are lines of orders, not items.
    """
    parts = words(name)
    if NEVER & set(parts):
        return 0
    for skipped in range(len(parts)):
        ending = "".join(parts[skipped:])
        if any(ending in names for names in TABLES.values()):
            strength = TABLES[kind].get(ending, 0)
            ahead = set(parts[:skipped])
            if not strength or not ahead:
                return strength
            return strength - 1 if ahead <= PREFIXES | shared_prefixes else strength - 2
    return 0
