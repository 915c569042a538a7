#!/usr/bin/env python3
"""Compares meridian with nginx, HAProxy and Envoy on loopback, all of them routing by the client's address.

    make compare                                                        all of it, ten minutes; writes docs/compare.md
    benches/compare/compare.py --install --peers nginx --rounds 2       some of it
    benches/compare/compare.py --peers '' --meridian new=target/release/meridian --meridian old=/tmp/meridian

Everything is divided by what the first --meridian needs. The exit status is 1 when an answer came from the wrong region, a request got
no answer, or meridian's log or metrics disagree with the answers. What it says besides the result goes to standard error.

This file runs the rounds. proxies.py knows how a proxy is set up, report.py what a page looks like, install.py where things come from.
"""
import argparse
import contextlib
import glob
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time

import install
import proxies
import report
from install import Failure

# What `load` is told for each.
SCENARIOS = {
    "ka64": ["--connections", "64"],
    "ka256": ["--connections", "256"],
    "close": ["--connections", "64", "--close"],
    "b100k": ["--connections", "32", "--path", "/b/102400", "--body", "102400"],
    "b1m": ["--connections", "32", "--path", "/b/1048576", "--body", "1048576"],
    "rate": ["--connections", "64", "--rate", "RATE"],
}
ASKED_FOR = ["b1m"]  # measured only when named
WARM_UP = 0.5  # seconds before each measurement
HELD = 1000  # connections for the memory of one
DESCRIPTORS = 16384
BUILT = os.path.join(install.ROOT, "target", "release", "meridian")
PROFILED = os.path.join(install.ROOT, "target", "pgo", "")
QUIET = 0.05  # the share of the proxy's core that others may take before it is worth a warning


class Bench:
    """The machine, divided: one core for the proxy, another for load and origin."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.all = sorted(os.sched_getaffinity(0))
        if len(self.all) < 2:
            raise Failure("two cores are needed: one for the proxy, another for load and origin")
        self.proxy_cores, self.load_cores = self.all[:1], self.all[1:2]
        self.origin = proxies.Origin(self.load_cores)

    def load(self, proxy, scenario, seconds, cores=None):
        options = [str(self.arguments.rate) if option == "RATE" else option for option in SCENARIOS[scenario]]
        return json.loads(self.run_load(proxy, [*options, "--seconds", str(seconds)], cores or self.load_cores))

    def load_command(self, proxy, options, cores):
        clients = os.path.join(install.GEO, "clients.txt")
        return ["taskset", "-c", ",".join(map(str, cores)), os.path.join(install.KIT, "release", "load"),
                "--target", f"127.0.0.1:{proxy.port}", "--clients", clients, *options]

    def run_load(self, proxy, options, cores):
        done = subprocess.run(self.load_command(proxy, options, cores), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"{proxy.name}: {done.stderr.strip()}; it said:\n{proxy.last_words()}")
        return done.stdout

    def measure(self, proxy, scenario, round_, cores=None):
        """One scenario on one proxy, which is paused before and after."""
        proxy.resume()
        warm = self.load(proxy, scenario, WARM_UP, cores)
        clock, cpu, busy = time.monotonic(), proxy.cpu_ns(), core_busy_seconds(self.proxy_cores[0])
        result = self.load(proxy, scenario, self.arguments.seconds, cores)
        clock, cpu = time.monotonic() - clock, (proxy.cpu_ns() - cpu) / 1e9
        busy = core_busy_seconds(self.proxy_cores[0]) - busy
        check_answers(proxy, scenario, [warm, result])
        proxy.pause()
        return {"proxy": proxy.name, "scenario": scenario, "round": round_, **result, "errors": warm["errors"] + result["errors"],
                "cpu_us": cpu * 1e6 / result["answered"], "foreign": max(0.0, (busy - cpu) / clock)}

    def memory(self, proxy):
        """Memory after the start, and while many connections are open that each made requests."""
        options = ["--connections", "1", "--seconds", "0.2"]
        first = json.loads(self.run_load(proxy, options, self.load_cores))
        check_answers(proxy, "memory", [first])
        idle = proxy.resident_kib()
        command = self.load_command(proxy, ["--connections", str(HELD), "--seconds", "1.5", "--hold"], self.load_cores)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
            line = holding.stdout.readline()
            if line:
                time.sleep(0.5)
                held = proxy.resident_kib()
            holding.stdin.close()
        if not line:
            raise Failure(f"{proxy.name}: no load over {HELD} connections; it said:\n{proxy.last_words()}")
        many = json.loads(line)
        if many["errors"]:
            raise Failure(f"{proxy.name}: {many['errors']} errors over {HELD} connections: {many['first_error']}")
        check_answers(proxy, "memory", [many])
        proxy.pause()
        return {"idle_kib": idle, "held_kib": held}


def check_answers(proxy, scenario, results):
    """A proxy that does not do the work is not compared."""
    wrong = sum(r["misrouted"] for r in results)
    answered = sum(r["answered"] for r in results)
    if wrong:
        raise Failure(f"{proxy.name}, {scenario}: {wrong} of {answered} answers came from the wrong region")
    for result in results:
        if not result["answered"]:
            raise Failure(f"{proxy.name}, {scenario}: no answers: {result['first_error']}")
    if not any(r["errors"] for r in results):
        proxy.check(answered)


def core_busy_seconds(core):
    """Time that a core was not idle, whoever used it."""
    with open("/proc/stat", encoding="utf-8") as stat:
        times = next(line.split()[1:9] for line in stat if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, times)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def say(text):
    print(text, file=sys.stderr, flush=True)


def load_average():
    return f"{os.getloadavg()[0]:.2f}"


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        found = re.search(r"model name\s*:\s*(.*)", info.read())
    return found.group(1) if found else platform.machine()


def own_version(binary):
    """With the commit, if it is what `make build` or `make release-pgo` built."""
    version = proxies.version("meridian", binary)
    if binary != BUILT and not binary.startswith(PROFILED):
        return version
    describe = ["git", "-C", install.ROOT, "describe", "--always", "--dirty"]
    try:
        return f"{version} ({subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()})"
    except (OSError, subprocess.CalledProcessError):
        return version  # a copy without its history


def rotated(things, n):
    n %= len(things)
    return things[n:] + things[:n]


def two_threads(bench, builds, rounds):
    """Each build of meridian with one worker and with two, nothing bound to a core."""
    measured = []
    for pid in bench.origin.members():
        os.sched_setaffinity(pid, bench.all)
    with contextlib.ExitStack() as started:
        pairs = []
        for name, binary in builds:
            for threads in (1, 2):
                proxy = proxies.Meridian(name, binary, bench.origin, bench.all, threads)
                started.callback(proxy.stop)
                proxy.pause()
                pairs.append((threads, proxy))
        for round_ in range(rounds):
            for threads, proxy in rotated(pairs, round_):
                measured.append({**bench.measure(proxy, "ka256", round_, bench.all), "scenario": str(threads)})
            say(f"threads, round {round_ + 1} of {rounds}: load average {load_average()}")
    return measured


def instructions(arguments, peers, builds):
    """User instructions of each proxy for a request of ka64, of all its processes and threads: by callgrind, from two runs that last as long and of
    which one is asked less, so that starting, ending and what goes by the clock do not count."""
    def start_of(name, binary):
        return lambda origin, cores, under: proxies.Meridian(name, binary, origin, cores, under=under)

    short, long = 1, 6
    starts = [(name, start_of(name, binary)) for name, binary in builds]
    starts += [(peer, proxies.PEERS[peer]) for peer in peers]
    with contextlib.ExitStack() as started:
        bench = Bench(arguments)
        started.callback(bench.origin.stop)
        for name, start in starts:
            totals = []
            for seconds in (short, long):
                out = os.path.join(install.OUT, f"callgrind.{name}")
                for old in glob.glob(f"{out}.*"):
                    os.remove(old)
                under = ["valgrind", "--tool=callgrind", "--trace-children=yes", f"--callgrind-out-file={out}.%p"]
                proxy = start(bench.origin, bench.proxy_cores, under)
                try:
                    result = bench.load(proxy, "ka64", seconds)
                    check_answers(proxy, "ka64", [result])
                    time.sleep(long - seconds)
                finally:
                    proxy.stop()
                if result["errors"]:
                    raise Failure(f"{name}: {result['errors']} errors; the first: {result['first_error']}")
                totals.append((sum(map(counted, glob.glob(f"{out}.*"))), result["answered"]))
            (few, some), (many, more) = totals
            say(f"{name}: {(many - few) / (more - some):,.0f} instructions for a request, from {more - some:,} requests")


def counted(path):
    """The instructions that a file of callgrind tells of."""
    with open(path, encoding="utf-8") as profile:
        return next(int(line.split()[1]) for line in profile if line.startswith("totals:"))


def compare(arguments, peers, builds):
    """Everything that --json writes."""
    begun = load_average()
    memory, builtin, measured, threads = {}, {}, [], []
    with contextlib.ExitStack() as started:
        bench = Bench(arguments)
        started.callback(bench.origin.stop)
        running = []
        starts = [(lambda n=name, b=binary: proxies.Meridian(n, b, bench.origin, bench.proxy_cores)) for name, binary in builds]
        starts += [(lambda p=peer: proxies.PEERS[p](bench.origin, bench.proxy_cores)) for peer in peers]
        for start in starts:
            proxy = start()
            started.callback(proxy.stop)
            running.append(proxy)
            say(f"{proxy.name} runs")
            memory[proxy.name] = bench.memory(proxy)
        for name, binary in builds:
            alone = proxies.Meridian(name, binary, bench.origin, bench.proxy_cores, template="meridian-builtin.toml")
            started.callback(alone.stop)
            time.sleep(1)
            builtin[name] = alone.resident_kib()
            alone.stop()
        for round_ in range(arguments.rounds):
            for scenario in arguments.scenarios:
                for proxy in rotated(running, round_):
                    measured.append(bench.measure(proxy, scenario, round_))
            say(f"round {round_ + 1} of {arguments.rounds}: load average {load_average()}")
        if arguments.two_threads:
            threads = two_threads(bench, builds, arguments.rounds)
    names = [proxy.name for proxy in running]
    versions = [own_version(binary) for _, binary in builds] + [proxies.version(peer) for peer in peers]
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "kernel": platform.release(), "cores": len(os.sched_getaffinity(0)),
            "load_average": [begun, load_average()], "rounds": arguments.rounds, "seconds": arguments.seconds, "rate": arguments.rate,
            "scenarios": arguments.scenarios, "proxies": names, "versions": dict(zip(names, versions)), "measured": measured,
            "two_threads": threads, "memory": memory, "builtin_kib": builtin}


def words(text):
    return [word for word in text.split(",") if word]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="fetch what is missing")
    parser.add_argument("--meridian", action="append", metavar="NAME=PATH", help="a build of meridian (target/release/meridian); repeatable")
    parser.add_argument("--peers", type=words, default=list(proxies.PEERS), help="of nginx,nginx-log,haproxy,envoy; '' for none")
    parser.add_argument("--scenarios", type=words, default=[s for s in SCENARIOS if s not in ASKED_FOR],
                        help=f"of {','.join(SCENARIOS)}; all but {','.join(ASKED_FOR)} if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rate", type=int, default=8000, help="requests per second of the scenario `rate`")
    parser.add_argument("--two-threads", action="store_true", help="also meridian with one and two worker threads")
    parser.add_argument("--instructions", action="store_true", help="only count user instructions, by valgrind")
    parser.add_argument("--json", metavar="FILE", help="every measurement")
    parser.add_argument("--markdown", metavar="FILE", help="the page")
    arguments = parser.parse_args()
    for given, known in ((arguments.peers, proxies.PEERS), (arguments.scenarios, SCENARIOS)):
        for word in given:
            if word not in known:
                parser.error(f"no such thing as {word}; there are {', '.join(known)}")
    if arguments.rounds < 1 or not arguments.scenarios or arguments.seconds <= 0:
        parser.error("nothing to measure")
    arguments.meridian = arguments.meridian or ["meridian=" + BUILT]
    builds = [build.partition("=")[::2] for build in arguments.meridian]
    for name, binary in builds:
        if not re.fullmatch(r"[\w.-]+", name) or not os.access(binary, os.X_OK) or os.path.isdir(binary):
            parser.error(f"--meridian {name}={binary}: not NAME=PATH of a program; `make build` makes target/release/meridian")
    names = [name.lower() for name, _ in builds] + arguments.peers
    if len(set(names)) != len(names):
        parser.error("two of one name")
    return arguments, [(name, os.path.abspath(binary)) for name, binary in builds]


def main():
    arguments, builds = parse()
    # So that what was started is stopped, also by a signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY and most < DESCRIPTORS:
            raise Failure(f"too few file descriptors: {most}; raise the limit to {DESCRIPTORS} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
        if arguments.install:
            install.install(arguments.peers)
        install.require(arguments.peers)
        install.build_kit()
        if arguments.instructions:
            instructions(arguments, arguments.peers, builds)
            return 0
        run = compare(arguments, arguments.peers, builds)
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    page = report.page(run)
    print(page)
    failed = [m for m in run["measured"] + run["two_threads"] if m["errors"]]
    for m in failed:
        first = m["first_error"] or "in the warm-up"
        say(f"error: {m['proxy']}, {m['scenario']}, round {m['round'] + 1}: {m['errors']} requests without a right answer; the first: {first}")
    foreign = max(m["foreign"] for m in run["measured"])
    if foreign > QUIET:
        say(f"warning: others took up to {foreign:.0%} of the proxy's core; repeat it on a quiet machine")
    if arguments.json:
        write(arguments.json, json.dumps(run, indent=1))
    if arguments.markdown and not failed:
        write(arguments.markdown, page)
    return 1 if failed else 0


def write(path, text):
    with open(path, "w", encoding="utf-8") as out:
        out.write(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    sys.exit(main())
