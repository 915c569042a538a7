#!/usr/bin/env python3
"""Makes the geo data of the comparison: the same facts in every form that one of the proxies reads.

    geo.py SOURCE.mmdb FOLDER

SOURCE is a country database with a flat `country_code`. A country's continent decides its region: the Americas r0, Europe and Africa
r1, Asia and Oceania r2; what is of no country goes to r1. Written into FOLDER:

    country.mmdb    in MaxMind's layout, which nginx, Envoy and meridian read
    regions.tsv     country, region, and whether meridian knows the country
    nginx.map       the same as lines of nginx's `map`
    haproxy.map     network and region, for HAProxy, which reads no MMDB
    clients.txt     address and region of those who ask

Half of the clients are random addresses, half are drawn from a few with a long tail (Zipf), so that caches see some of both. It runs
in the tool's own environment for the sake of mmdb-writer; it knows no proxy and starts nothing.
"""
import collections
import ipaddress
import os
import random
import sys

import maxminddb
import netaddr
from mmdb_writer import MMDBWriter

HERE = os.path.dirname(os.path.abspath(__file__))
COUNTRIES = os.path.join(HERE, "..", "..", "src", "geo", "tables", "countries.tsv")
REGION = {"NA": 0, "SA": 0, "EU": 1, "AF": 1, "AN": 1, "AS": 2, "OC": 2}
ELSEWHERE = 1
CLIENTS, REGULARS = 65536, 4096


def continents():
    """Country to continent, of the countries that meridian knows."""
    with open(COUNTRIES, encoding="utf-8") as table:
        return dict(line.split("\t")[:2] for line in table if not line.startswith("#"))


def merged(networks):
    """(network, region) of (network, country, region), neighbours of one region joined."""
    for version, kind in ((4, ipaddress.IPv4Address), (6, ipaddress.IPv6Address)):
        runs = []
        for network, _, region in networks:
            if network.version != version:
                continue
            first, last = int(network[0]), int(network[-1])
            if runs and runs[-1][2] == region and runs[-1][1] + 1 == first:
                runs[-1][1] = last
            else:
                runs.append([first, last, region])
        for first, last, region in runs:
            for network in ipaddress.summarize_address_range(kind(first), kind(last)):
                yield network, region


def clients(networks):
    """(address, region), the same ones every time."""
    chance = random.Random(1)
    v4 = [(int(network[0]), network.num_addresses, region) for network, _, region in networks if network.version == 4]
    drawn = chance.choices(v4, weights=[size for _, size, _ in v4], k=CLIENTS // 2 + REGULARS)
    drawn = [(ipaddress.IPv4Address(first + chance.randrange(size)), region) for first, size, region in drawn]
    regulars, others = drawn[:REGULARS], drawn[REGULARS:]
    often = chance.choices(regulars, weights=[1 / (rank + 1) ** 1.1 for rank in range(REGULARS)], k=CLIENTS // 2)
    out = others + often
    chance.shuffle(out)
    return out


def write(folder, name, lines):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in lines)


def main(source, folder):
    continent = continents()
    networks = []
    for network, record in maxminddb.open_database(source):
        country = record.get("country_code")
        if country:
            networks.append((network, country, REGION.get(continent.get(country), ELSEWHERE)))
    of_country = collections.defaultdict(list)
    for network, country, _ in networks:
        of_country[country].append(str(network))
    region = {country: r for _, country, r in networks}
    os.makedirs(folder, exist_ok=True)

    database = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-Country", languages=["en"])
    for country, of_it in of_country.items():
        database.insert_network(netaddr.IPSet(of_it), {"country": {"iso_code": country}})
    database.to_db_file(os.path.join(folder, "country.mmdb"))
    known = ("unknown", "known")
    write(folder, "regions.tsv", (f"{c}\tr{region[c]}\t{known[c in continent]}" for c in sorted(region)))
    write(folder, "nginx.map", (f"{c} r{region[c]};" for c in sorted(region)))
    write(folder, "haproxy.map", (f"{network} r{r}" for network, r in merged(networks)))
    # The last one written: who finds it finds all.
    write(folder, "clients.txt", (f"{address} {r}" for address, r in clients(networks)))
    print(f"{len(networks)} networks of {len(region)} countries")


if __name__ == "__main__":
    main(*sys.argv[1:])
