"""Invented names and the values that invented people and companies can have."""

from __future__ import annotations

import random
from collections.abc import Mapping

_FEMALE = (
    "Adela Brisa Calla Delphine Elowen Fenna Greta Hanne Ilse Jolanta Katya Liesel Mirela Nadja Ottilie Petra "
    "Romy Saskia Tilda Ulrike Verena Willa Xenia Ysolde Zelda Marit Signe Odile Noemi Lucilla"
).split()
_MALE = (
    "Anselm Bertil Caspar Dorian Emeric Florin Gideon Hakon Ivo Jarek Kasimir Leopold Matthis Nestor Osric Piers "
    "Quentin Radek Silas Tobias Ulric Viggo Wendel Xaver Yorick Zoltan Lorcan Magnus Edgar Felix"
).split()
_FIRST_HALF = (
    "Brav Cald Dorn Elm Fal Gar Hol Ist Jar Kel Lor Mar Nor Ost Pell Quar Rav Sel Tarn Ul Vess Wen Yar Zim Ash Bel "
    "Corv Drav Ern Fost Grim Hald"
).split()
_SECOND_HALF = (
    "ance bury croft dale enko feld gard holm ington jovic kin lund mere nova ovic pool quist rath son thorpe unda "
    "vale wick yard zak ander borne court"
).split()
_COMPANY_KINDS = (
    "Works Systems Foods Motors Textiles Optics Shipping Press Pharma Energy Mills Studios".split()
)
_NICKNAMES_A = (
    "Old Little Captain Doctor Professor Lucky Silent Iron Golden Swift Gentle Red".split()
)
_NICKNAMES_B = (
    "Falcon Willow Badger Comet Harbor Maple Raven Thimble Lantern Otter Pepper Sparrow Anchor Bramble Cobalt"
).split()

COUNTRY_ALIASES: Mapping[str, str] = {
    "United States": "the USA",
    "United Kingdom": "Great Britain",
    "Netherlands": "Holland",
    "Iran": "Persia",
    "Myanmar": "Burma",
    "Ivory Coast": "C\u00f4te d'Ivoire",
    "Eswatini": "Swaziland",
    "Czech Republic": "Czechia",
    "Thailand": "Siam",
    "Switzerland": "the Swiss Confederation",
    "Ireland": "\u00c9ire",
    "Finland": "Suomi",
    "Japan": "Nippon",
    "Greece": "the Hellenic Republic",
    "Germany": "the Federal Republic of Germany",
    "East Timor": "Timor-Leste",
}
OCCUPATIONS = (
    "lawyer, nurse, pilot, painter, chemist, farmer, banker, sculptor, architect, journalist, dentist, historian, "
    "geologist, carpenter, surgeon, translator, judge, baker, astronomer, librarian, plumber, botanist, photographer, "
    "teacher, diplomat, jeweller, tailor, economist, mathematician, veterinarian, gardener, cartographer"
).split(", ")
UNIVERSITIES = (
    "Harvard University, Yale University, Stanford University, Princeton University, Cornell University, "
    "University of Oxford, University of Cambridge, Heidelberg University, University of Bologna, Leiden University, "
    "Uppsala University, Kyoto University, University of Padua, University of Basel, Brown University, "
    "Duke University, University of Vienna, Charles University, University of Tokyo, McGill University, "
    "University of Edinburgh, Sorbonne University, University of Coimbra, University of Salamanca, "
    "Jagiellonian University, University of Helsinki"
).split(", ")
SPORTS = (
    "tennis, chess, rugby, hockey, golf, cricket, judo, boxing, rowing, fencing, polo, darts, football, basketball, "
    "volleyball, badminton, archery, curling, sailing, karate"
).split(", ")
INSTRUMENTS = (
    "piano, violin, guitar, cello, flute, trumpet, harp, clarinet, oboe, drums, accordion, banjo, saxophone, viola, "
    "organ, trombone, mandolin, bassoon"
).split(", ")
INDUSTRIES = (
    "insurance, banking, mining, logistics, publishing, fashion, aviation, agriculture, telecommunications, "
    "construction, tourism, robotics, brewing, forestry, fishing, software, steel, cosmetics"
).split(", ")
PRODUCTS = (
    "bicycles, umbrellas, microscopes, watches, tractors, kettles, furniture, paper, chocolate, shoes, bearings, "
    "carpets, turbines, lamps, cameras, toys, candles, pianos, batteries, engines, cheese, pencils, mirrors, tents"
).split(", ")


def people(draw: random.Random, count: int, *, taken: set[str]) -> list[tuple[str, str]]:
    """Draw unique full names, each with the pronoun that goes with the first name."""
    found: dict[str, str] = {}
    while len(found) < count:
        name, pronoun = person(draw)
        if name not in taken:
            found.setdefault(name, pronoun)
    return list(found.items())


def person(draw: random.Random) -> tuple[str, str]:
    """Draw one full name and pronoun; also the source of names that belong to nobody."""
    first, pronoun = draw.choice([*((n, "She") for n in _FEMALE), *((n, "He") for n in _MALE)])
    return f"{first} {draw.choice(_FIRST_HALF)}{draw.choice(_SECOND_HALF)}", pronoun


def companies(draw: random.Random, count: int, *, taken: set[str]) -> list[str]:
    """Draw unique company names."""
    found: dict[str, None] = {}
    while len(found) < count:
        if (name := company(draw)) not in taken:
            found[name] = None
    return list(found)


def company(draw: random.Random) -> str:
    """Draw one company name."""
    return f"{draw.choice(_FIRST_HALF)}{draw.choice(_SECOND_HALF)} {draw.choice(_COMPANY_KINDS)}"


def nickname(draw: random.Random, *, taken: set[str]) -> str:
    """Draw a nickname nobody else has."""
    while True:
        name = f"{draw.choice(_NICKNAMES_A)} {draw.choice(_NICKNAMES_B)}"
        if draw.random() < 0.5:
            name = f"{name} {draw.choice('I II III IV V VI VII VIII IX X'.split())}"
        if name not in taken:
            return name
