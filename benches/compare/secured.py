#!/usr/bin/env python3
"""TLS and HTTP/2 from clients beside nginx and HAProxy, by h2load: CPU time per request, as ratios to meridian.

    make compare-tls                                                    a few minutes
    benches/compare/secured.py --rounds 3 --meridian new=target/release/meridian --meridian old=/tmp/meridian

TLS 1.3 and a P-256 certificate everywhere; one worker on a core of its own; origin and load on another. meridian writes its access log, the others none.
A measurement with a request that got no answer of status 2xx is an error (exit status 1).
"""
import argparse
import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import time

import install
import proxies
from compare import BUILT, core_busy_seconds, rotated, say
from install import Failure

# What h2load is told for each. A connection and one request: as many of both.
SCENARIOS = {
    "h1-64": ["--h1", "-c", "64", "-m", "1"],
    "h2-16x16": ["-c", "16", "-m", "16"],
    "handshake": ["--h1", "-c", "1000", "-n", "1000"],
}
WARM_UP = 0.5


def certificate(folder):
    cert, key = os.path.join(folder, "site.pem"), os.path.join(folder, "site.key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
                    "/CN=site.test", "-addext", "subjectAltName=DNS:site.test", "-keyout", key, "-out", cert], check=True, capture_output=True)
    with open(os.path.join(folder, "both.pem"), "w", encoding="utf-8") as both:
        for part in (cert, key):
            with open(part, encoding="utf-8") as text:
                both.write(text.read())
    return folder


def values(origin, folder, certificates):
    return {**{f"R{n}": port for n, port in enumerate(origin.ports)}, "PORT": proxies.free_port(), "RUN": folder, "CERT": certificates,
            "USER": "root" if os.geteuid() == 0 else "nobody"}


def start(name, binary, origin, cores, certificates):
    folder = proxies.folder_of(f"{name}-tls")
    with_values = values(origin, folder, certificates)
    if name == "nginx":
        config = proxies.render("nginx-tls.conf", os.path.join(folder, "nginx.conf"), with_values)
        command = [install.program("nginx"), "-e", "stderr", "-c", config]
    elif name == "haproxy":
        config = proxies.render("haproxy-tls.cfg", os.path.join(folder, "haproxy.cfg"), with_values)
        command = [install.program("haproxy"), "-db", "-q", "-f", config]
    else:
        os.makedirs(os.path.join(folder, "conf"), exist_ok=True)
        config = proxies.render("meridian-tls.toml", os.path.join(folder, "conf", "meridian.toml"), with_values)
        command = [binary, "run", "--config", config]
    return proxies.Proxy(name, command, folder, cores, with_values["PORT"])


def load(proxy, scenario, seconds, cores):
    """Answers, all of them good."""
    options = SCENARIOS[scenario]
    ends = time.monotonic() + seconds
    answered = 0
    while True:
        timed = [] if "-n" in options else ["-D", str(max(1, round(seconds)))]
        command = ["taskset", "-c", str(cores[0]), "h2load", "-t", "1", *options, *timed, f"https://127.0.0.1:{proxy.port}/"]
        done = subprocess.run(command, capture_output=True, text=True)
        found = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
        if done.returncode or not found:
            raise Failure(f"{proxy.name}, {scenario}: h2load said:\n{done.stdout}{done.stderr}")
        done_, good, failed, errored = map(int, found.groups())
        codes = re.search(r"status codes: (\d+) 2xx", done.stdout)
        if not good or failed or errored or not codes or int(codes.group(1)) < good:
            raise Failure(f"{proxy.name}, {scenario}: {found.group()}; it said:\n{proxy.last_words()}")
        answered += done_
        if timed or time.monotonic() > ends:
            return answered


def measure(proxy, scenario, seconds, proxy_core, load_cores):
    proxy.resume()
    load(proxy, scenario, WARM_UP, load_cores)
    clock, cpu, busy = time.monotonic(), proxy.cpu_ns(), core_busy_seconds(proxy_core)
    answered = load(proxy, scenario, seconds, load_cores)
    clock, cpu = time.monotonic() - clock, (proxy.cpu_ns() - cpu) / 1e9
    busy = core_busy_seconds(proxy_core) - busy
    proxy.pause()
    return cpu * 1e6 / answered, max(0.0, (busy - cpu) / clock)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meridian", action="append", metavar="NAME=PATH")
    parser.add_argument("--peers", default="nginx,haproxy")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--install", action="store_true", help="fetch what is missing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    builds = [build.partition("=")[::2] for build in arguments.meridian or ["meridian=" + BUILT]]
    peers = [peer for peer in arguments.peers.split(",") if peer]
    all_cores = sorted(os.sched_getaffinity(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16384, most), most))
    try:
        if len(all_cores) < 2:
            raise Failure("two cores are needed: one for the proxy, another for load and origin")
        if arguments.install:
            install.debian(peers, geo=False, tls=True)
        install.build_kit()
        with contextlib.ExitStack() as started:
            origin = proxies.Origin(all_cores[1:2])
            started.callback(origin.stop)
            certificates = certificate(proxies.folder_of("certificates"))
            running = []
            for name, binary in [*builds, *((peer, None) for peer in peers)]:
                proxy = start(name, binary and os.path.abspath(binary), origin, all_cores[:1], certificates)
                started.callback(proxy.stop)
                proxy.pause()
                running.append(proxy)
            scenarios = arguments.scenarios.split(",")
            found = {scenario: {proxy.name: [] for proxy in running} for scenario in scenarios}
            foreign = 0.0
            for round_ in range(arguments.rounds):
                for scenario in scenarios:
                    for proxy in rotated(running, round_):
                        cpu, others = measure(proxy, scenario, arguments.seconds, all_cores[0], all_cores[1:2])
                        found[scenario][proxy.name].append(cpu)
                        foreign = max(foreign, others)
                say(f"round {round_ + 1} of {arguments.rounds}")
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    first = running[0].name
    print(f"CPU time per request in microseconds, and {first} divided by each, median [least-most] of {arguments.rounds} rounds; others took up to {foreign:.0%} of the proxy's core\n")
    print("| scenario | " + " | ".join(proxy.name for proxy in running) + " |\n|---|" + "---|" * len(running))
    for scenario, by_name in found.items():
        cells = []
        for proxy in running:
            ratios = sorted(own / other for own, other in zip(by_name[first], by_name[proxy.name]))
            cell = f"{statistics.median(by_name[proxy.name]):.1f}"
            cells.append(cell if proxy.name == first else f"{cell}: {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")
        print(f"| {scenario} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
