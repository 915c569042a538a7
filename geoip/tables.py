#!/usr/bin/env python3
"""Writes src/geo/tables/countries.tsv: every ISO 3166-1 country, its continent and capital.

    target/geoip-venv/bin/python geoip/tables.py [--cache DIR]

Points come from public-domain data: the capitals of Natural Earth's populated places (1:110m), and
for small territories, which that set leaves out, the principal location the tz database gives in
zone.tab. Two uninhabited islands are in neither and stand below.
"""
import argparse
import os
import re
import struct
import unicodedata

import sources

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "src", "geo", "tables", "countries.tsv")

# The same city under Natural Earth's name, or the nearest city it has. (country: its name, name to print)
NEAR = {
    "AD": ("Andorra", "Andorra la Vella"),
    "BI": ("Bujumbura", "Bujumbura"),  # the capital since 2019 is Gitega, 65 km away
    "DK": ("København", "Copenhagen"),
    "GD": ("Saint George's", "Saint George's"),
    "HK": ("Hong Kong", "Hong Kong"),
    "KI": ("Tarawa", "Tarawa"),
    "KZ": ("Nur-Sultan", "Astana"),
    "MN": ("Ulaanbaatar", "Ulaanbaatar"),
    "PW": ("Melekeok", "Ngerulmud"),
    "SM": ("San Marino", "San Marino"),
    "SZ": ("Mbabane", "Mbabane"),
}
# Taken from zone.tab although a city of that name exists (elsewhere), or where the first zone or the
# name is not the one meant.
ZONE = {
    "AQ": ("Antarctica/McMurdo", "McMurdo"),
    "GP": ("America/Guadeloupe", "Basse-Terre"),  # not Basseterre, KN
    "KY": ("America/Cayman", "George Town"),  # not Georgetown, GY
    "NF": ("Pacific/Norfolk", "Kingston"),  # not Kingston, JM
    "MO": ("Asia/Macau", "Macao"),
    "PS": ("Asia/Hebron", "Hebron"),
    "UM": ("Pacific/Midway", "Midway"),
}
BY_HAND = {"BV": (-54.42, 3.36, "Bouvet Island"), "HM": (-53.10, 73.51, "Heard Island")}


def key(name):
    plain = unicodedata.normalize("NFKD", name)
    return re.sub("[^a-z]", "", "".join(c for c in plain if not unicodedata.combining(c)).lower())


def natural_earth(cache):
    """{key of name: (latitude, longitude)} from the shapefile: a table of one column, and points."""
    stem = "geopandas/datasets/naturalearth_cities/naturalearth_cities"
    with sources.pip(sources.NATURAL_EARTH, cache) as wheel:
        dbf, shp = wheel.read(stem + ".dbf"), wheel.read(stem + ".shp")
    count, header, row = struct.unpack("<IHH", dbf[4:12])
    names = [dbf[header + i * row + 1 : header + (i + 1) * row].decode("latin-1").strip() for i in range(count)]
    points, at = [], 100
    while at < len(shp):
        words = struct.unpack(">i", shp[at + 4 : at + 8])[0]
        x, y = struct.unpack("<dd", shp[at + 12 : at + 28])
        points.append((y, x))
        at += 8 + 2 * words
    return dict(zip(map(key, names), points))


def degrees(text):
    """+DDMM or +DDMMSS, one more digit for longitudes."""
    sign, digits = -1 if text[0] == "-" else 1, text[1:]
    whole = len(digits) - (2 if len(digits) <= 5 else 4)
    minutes, seconds = int(digits[whole : whole + 2]), int(digits[whole + 2 :] or 0)
    return sign * (int(digits[:whole]) + minutes / 60 + seconds / 3600)


def zones(cache):
    """{country: [(zone, latitude, longitude)]} in the file's order: the most populous first."""
    with sources.pip(sources.TZDATA, cache) as wheel:
        text = wheel.read("tzdata/zoneinfo/zone.tab").decode("utf-8")
    out = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            country, point, zone = line.split("\t")[:3]
            latitude, longitude = re.fullmatch(r"([+-]\d+)([+-]\d+)", point).groups()
            out.setdefault(country, []).append((zone, degrees(latitude), degrees(longitude)))
    return out


def rows(cache):
    cities, zone_tab, known = natural_earth(cache), zones(cache), sources.countries_list(cache)
    for code in sorted([*sources.iso_countries(cache), "XK"]):
        continent, capital = known[code]["continent"], known[code]["capital"]
        if code in BY_HAND:
            latitude, longitude, name = BY_HAND[code]
        elif code in ZONE:
            zone, name = ZONE[code]
            latitude, longitude = next(z[1:] for z in zone_tab[code] if z[0] == zone)
        elif code in NEAR:
            (latitude, longitude), name = cities[key(NEAR[code][0])], NEAR[code][1]
        elif capital and key(capital) in cities:
            (latitude, longitude), name = cities[key(capital)], capital
        else:
            (_, latitude, longitude), name = zone_tab[code][0], capital
        yield code, continent, latitude, longitude, name


def write(cache, out=OUT):
    os.makedirs(os.path.dirname(out), exist_ok=True)
    n = 0
    with open(out, "w", encoding="utf-8", newline="\n") as f:
        f.write("# Made by geoip/tables.py; see geoip/README.md. Country, continent, latitude, longitude, capital.\n")
        for code, continent, latitude, longitude, name in rows(cache):
            f.write(f"{code}\t{continent}\t{latitude:.4f}\t{longitude:.4f}\t{name}\n")
            n += 1
    print(f"{out}: {n} countries")


def continents():
    """{country: continent} from the table as it stands."""
    with open(OUT, encoding="utf-8") as f:
        return {row[0]: row[1] for row in (line.split("\t") for line in f if not line.startswith("#"))}


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cache", default=os.path.join(ROOT, "target", "geoip-cache"))
    write(args.parse_args().cache)
