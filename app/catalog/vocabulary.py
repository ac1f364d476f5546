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


def singulars(name: str) -> Iterator[str]:
    """A folded name and what its singular may be, in any of the languages."""
    yield name
    for plural, singular in (("ies", "y"), ("s", ""), ("es", ""), ("r", ""), ("er", ""), ("n", ""), ("en", ""), ("e", "")):
        if name.endswith(plural) and len(name) > len(plural) + 2:
            yield name.removesuffix(plural) + singular


def _names(strength: int, text: str) -> dict[str, int]:
    return dict.fromkeys(text.split(), strength)


TABLES: dict[str, dict[str, int]] = {
    "products": _names(6, "product products produkt produkte produkter produkten producten vare varer ware waren")
    | _names(6, "catalogproduct catalogproducts")
    | _names(4, "item items article articles artikel artikler artikelen goods catalogitem catalogitems"),
    "categories": _names(6, "category categories productcategory productcategories kategori kategorier kategorie")
    | _names(6, "kategorien categorie categorien categorieen varegruppe varegrupper produktgruppe produktgrupper")
    | _names(6, "produktgruppen warengruppe warengruppen artikelgruppe artikelgruppen produktkategori")
    | _names(6, "produktkategorier produktkategorie produktkategorien productgroep productgroepen productgroup")
    | _names(6, "productgroups varekategori varekategorier productcategorie productcategorieen")
    | _names(4, "collection collections taxon taxons department departments"),
    "orders": _names(6, "order orders ordre ordrer salesorder salesorders customerorder customerorders bestellung")
    | _names(6, "bestellungen auftrag auftraege bestelling bestellingen orderheader orderheaders ordrehoved")
    | _names(6, "webshoporder webshoporders kundenauftrag")
    | _names(4, "sale sales salg"),
    "customers": _names(6, "customer customers kunde kunder kunden klant klanten client clients shopper shoppers")
    | _names(3, "user users authuser account accounts member members bruger brugere benutzer nutzer gebruiker")
    | _names(3, "gebruikers buyer buyers"),
    "pages": _names(6, "page pages cmspage cmspages contentpage contentpages flatpage flatpages flatpages staticpage")
    | _names(6, "side sider seite seiten pagina paginas cmsside cmssider cmsseite cmsseiten")
    | _names(5, "post posts blogpost blogposts blogentry blogentries blog blogs blogindlaeg indlaeg cms beitraege")
    | _names(4, "article articles artikel artikler news nyhed nyheder nachrichten nieuws content"),
    "lines": _names(6, "orderline orderlines orderitem orderitems orderdetail orderdetails orderproduct orderproducts")
    | _names(6, "lineitem lineitems ordrelinje ordrelinjer ordrelinie ordrelinier bestellposition orderrow orderrows")
    | _names(6, "bestellpositionen auftragsposition auftragspositionen bestelregel bestelregels orderregel")
    | _names(6, "orderregels salesorderline salesorderitem saleline salelines"),
    "brands": _names(6, "brand brands manufacturer manufacturers maerke maerker producent producenter marke marken")
    | _names(6, "hersteller merk merken fabrikant fabrikanten productbrand vendor vendors"),
    "images": _names(6, "productimage productimages image images productphoto productphotos productpicture")
    | _names(6, "productpictures productmedia media billede billeder produktbillede produktbilleder varebilleder")
    | _names(6, "bild bilder produktbild produktbilder artikelbilder afbeelding afbeeldingen productafbeeldingen")
    | _names(6, "photo photos picture pictures"),
}
"""Names of tables by what they hold, with how much a name says: 6 much, 3 little."""

PREFIXES = frozenset(
    "tbl tab t dbo app apps shop webshop store catalog catalogue core main my wp wc woocommerce oc ps ecommerce ecom"
    " commerce sales product products order orders magento sylius spree django cms blog content data public"
    " account accounts customer customers ordre kunde vare produkt base erp".split()
)
"""Words in front of a table's name that say nothing against it."""

NEVER = frozenset(
    "cart carts basket baskets kurv kurve warenkorb winkelwagen winkelmand wishlist wishlists oenskeliste quote quotes"
    " invoice invoices shipment shipments return returns refund refunds purchase supplier suppliers backup bak old tmp"
    " temp archive archived history log logs audit staging stg import deleted test related revision revisions version"
    " versions draft drafts".split()
)
"""Words that tell of another thing, however the rest of the table looks."""

COLUMNS: dict[str, tuple[Family, str]] = {
    "name": (
        "text",
        "name title productname navn titel varenavn bezeichnung naam displayname label varetekst productnaam betegnelse",
    ),
    "description": (
        "text",
        "description longdescription fulldescription body bodyhtml descriptionhtml content details beskrivelse"
        " langbeskrivelse beschreibung langbeschreibung langtext beschrijving omschrijving shortdescription"
        " kortbeskrivelse kurzbeschreibung summary",
    ),
    "price": (
        "number",
        "price currentprice sellingprice salesprice unitprice baseprice pris salgspris stykpris enhedspris preis"
        " verkaufspreis einzelpreis bruttopreis prijs verkoopprijs priceincltax pricegross regularprice",
    ),
    "list_price": (
        "number",
        "listprice compareatprice msrp rrp regularprice originalprice oldprice recommendedprice retailprice"
        " vejledendepris foerpris normalpris listepris uvp listenpreis streichpreis adviesprijs vanprijs",
    ),
    "image": (
        "text",
        "imageurl image mainimage mainimageurl primaryimage picture pictureurl photo photourl img imgurl imagepath"
        " imagefile imagefilename imagename featuredimage coverimage thumbnail thumbnailurl thumb billede billedurl"
        " billedeurl billedfil bild bildurl bilddatei bildpfad afbeelding afbeeldingurl foto",
    ),
    "url": (
        "text",
        "url producturl link permalink canonicalurl slug urlslug urlkey handle seourl path urlpath friendlyurl"
        " seoname postname pfad pad adresse",
    ),
    "sku": (
        "text",
        "sku productnumber articlenumber itemnumber productcode itemcode articlecode partnumber varenr varenummer"
        " artikelnummer artikelnr artnr code",
    ),
    "stock": (
        "number",
        "stock stockquantity stockqty stocklevel unitsinstock quantityinstock instock qtyinstock inventory"
        " inventoryquantity inventorycount onhand quantityonhand available availablequantity lager lagerantal"
        " lagerbeholdning paalager antalpaalager bestand lagerbestand lagermenge voorraad quantity qty",
    ),
    "brand": ("text", "brand brandname manufacturer maerke producent marke hersteller merk fabrikant vendor"),
    "reviews_amount": ("integer", "reviewcount reviewscount ratingcount numreviews reviewsamount"),
    "reviews_avg": ("number", "reviewaverage averagerating ratingaverage avgrating reviewsavg"),
    "created_at": (
        "time",
        "createdat created datecreated createddate createdon creationdate creationtime dateadded addedat insertedat"
        " createdate oprettet oprettetdato oprettelsesdato oprettetden dato erstellt erstelltam erstellungsdatum"
        " angelegt angelegtam aangemaakt aangemaaktop aanmaakdatum publishedat publishdate pubdate postdate"
        " postdategmt",
    ),
    "modified_at": (
        "time",
        "modifiedat updatedat modified updated lastmodified lastupdated lastupdate datemodified dateupdated"
        " modifieddate updateddate updatedon modifiedon modifiedtime updatetime changedat changed writedate"
        " postmodifiedgmt postmodified aendret aendretdato sidstaendret opdateret sidstopdateret opdateretdato"
        " geaendert geaendertam aenderungsdatum aktualisiert aktualisiertam letzteaenderung gewijzigd gewijzigdop"
        " bijgewerkt bijgewerktop wijzigingsdatum",
    ),
    "time": (
        "time",
        "orderedat orderdate orderdatetime placedat dateplaced purchasedat purchasedate ordertime orderplacedat"
        " ordredato bestilt bestiltdato bestilldato bestelltam bestelldatum auftragsdatum besteldatum besteldop"
        " date time datum dato createdat created datecreated createdon createddate oprettet erstellt erstelltam"
        " aangemaakt aangemaaktop dateadded insertedat",
    ),
    "email": (
        "text",
        "email emailaddress mail mailaddress mailadresse emailadresse emailadres customeremail billingemail useremail"
        " contactemail guestemail epost",
    ),
    "person": (
        "text",
        "name fullname displayname customername contactname navn fuldenavn kundenavn naam vollername kundenname"
        " klantnaam",
    ),
    "first_name": ("text", "firstname givenname forename fornavn vorname voornaam"),
    "last_name": ("text", "lastname surname familyname efternavn nachname achternaam"),
    "subscribed": (
        "bool",
        "subscribed newsletter newslettersubscribed issubscribed subscribedtonewsletter acceptsmarketing optin"
        " newsletteroptin marketingconsent nyhedsbrev nieuwsbrief",
    ),
    "zip": ("text", "zip zipcode postalcode postcode postnr postnummer plz postleitzahl"),
    "gender": ("text", "gender sex koen geschlecht geslacht"),
    "age": ("integer", "age alder leeftijd"),
    "is_b2b": ("bool", "isb2b b2b isbusiness erhverv zakelijk"),
    "quantity": (
        "number",
        "quantity qty units antal menge anzahl aantal quantityordered orderedquantity qtyordered amount count stueck",
    ),
    "line_price": (
        "number",
        "unitprice price priceeach itemprice singleprice saleprice unitpriceincltax finalprice stykpris enhedspris"
        " pris einzelpreis stueckpreis preis stukprijs prijsperstuk prijs",
    ),
    "title": ("text", "title name headline heading titel overskrift navn ueberschrift naam posttitle"),
    "text": (
        "text",
        "text body content html bodyhtml contenthtml bodytext article tekst indhold broedtekst inhalt inhoud"
        " postcontent description",
    ),
    "type": ("text", "type pagetype posttype contenttype kind art"),
    "position": ("integer", "position sortorder sort displayorder ordering rank sequence linenumber lineno sortering"),
    "image_file": ("text", "url imageurl image src path file filename original imagepath href sti fil datei pfad bestand"),
    "parent": (
        "text",
        "parentid parent parentcategoryid parentcategory overordnet overordnetid overkategori overkategoriid foraelder"
        " foraelderid elternid oberkategorie oberkategorieid uebergeordnet bovenliggend bovenliggendeid"
        " hoofdcategorie hoofdcategorieid ouderid",
    ),
}
"""Names of columns by what they hold, the likeliest first, and the family of types that can hold it."""

ACTIVE = frozenset(
    "active isactive enabled isenabled published ispublished visible isvisible online isonline aktiv eraktiv synlig"
    " istaktiv sichtbar actief zichtbaar ispublic".split()
)
INACTIVE = frozenset(
    "deleted isdeleted deletedat discontinued isdiscontinued archived isarchived archivedat disabled isdisabled hidden"
    " slettet slettetden udgaaet geloescht geloeschtam verwijderd verwijderdop".split()
)
STATE = frozenset("status state orderstatus poststatus productstatus tilstand zustand financialstatus".split())
HIERARCHY = frozenset("depth level lft lftnode rght rgt numchild treeid niveau".split())
"""Columns of a tree that is kept without a parent column."""


def column_names(kind: str) -> tuple[Family, tuple[str, ...]]:
    family, names = COLUMNS[kind]
    return family, tuple(names.split())


def without_nouns(name: str, nouns: Iterable[str]) -> Iterator[str]:
    """A folded column name, and what is left of it without the noun of its table in front: productname, name."""
    yield name
    for noun in nouns:
        if name.startswith(noun) and len(name) > len(noun) + 1:
            yield name.removeprefix(noun)


def table_strength(name: str, kind: str, shared_prefixes: frozenset[str]) -> int:
    """How much a table's name says for what it may hold; 0 for nothing."""
    parts = words(name)
    if NEVER & set(parts):
        return 0
    known = TABLES[kind]
    for skipped in range(len(parts)):
        strength = known.get("".join(parts[skipped:]), 0)
        if strength:
            ahead = set(parts[:skipped])
            if not ahead:
                return strength
            return strength - 1 if ahead <= PREFIXES | shared_prefixes else strength - 2
    return 0
