"""Turns measurements into a page of Markdown, which also reads well in a terminal. It measures nothing."""
import statistics

HEADINGS = {
    "ka64": "64 connections that stay, 13 bytes",
    "ka256": "256 connections that stay, 13 bytes",
    "close": "64 at once, a new client connection for each request, 13 bytes",
    "b100k": "32 connections that stay, 100 KiB",
    "b1m": "32 connections that stay, 1 MiB",
    "rate": "a fixed rate over 64 connections, 13 bytes",
}


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values):
    """Median [least-most]"""
    return f"{number(statistics.median(values))} [{number(min(values))}-{number(max(values))}]" if values else "-"


def table(head, rows):
    rows = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(cells):
        first, *others = (cell.ljust(width) if not n else cell.rjust(width) for n, (cell, width) in enumerate(zip(cells, widths)))
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if n else "-") for n, width in enumerate(widths)) + "|"
    return [line(rows[0]), rule, *map(line, rows[1:])]


class Figures:
    """All measurements, asked by proxy and scenario."""

    def __init__(self, measured):
        self.measured = measured

    def of(self, proxy, scenario, key):
        return [m[key] for m in self.measured if m["proxy"] == proxy and m["scenario"] == scenario]

    def ratios(self, base, other, scenario, key):
        """base / other, each within one round: what changes from round to round falls out."""
        pairs = zip(self.of(base, scenario, key), self.of(other, scenario, key))
        return [ours / theirs for ours, theirs in pairs if theirs]


def page(run):
    """The whole page. `run` is what --json writes."""
    figures, base, others = Figures(run["measured"]), run["proxies"][0], run["proxies"][1:]
    titles = {name: f"{name} {version}".strip() for name, version in run["versions"].items()}
    threads = run["two_threads"]
    out = ["# Side by side", ""]
    out += [f"{', '.join(titles.values())}; {run['date']}. Rounds: {run['rounds']}, with {run['seconds']:g} s for each scenario and proxy.",
            "Written by `make compare`; the method and the configurations are in [benches/compare](../benches/compare/README.md).", ""]
    if others:
        out += ["## CPU per request", ""]
        out += [f"CPU time of {base} for a request divided by that of the other, in the same round: median [least-most] of the rounds.",
                f"**Below 1, {base} needs less.**", ""]
        out += table(["", *(titles[o] for o in others)],
                     [[s, *(spread(figures.ratios(base, o, s, "cpu_us")) for o in others)] for s in run["scenarios"]])
        out += ["", "## Requests per second", "",
                f"Of {base}, divided by those of the other in the same round. **Above 1, {base} serves more.** Load and origin run beside the",
                "proxy, so part of it is theirs; at a fixed rate it is 1 unless one cannot keep up.", ""]
        out += table(["", *(titles[o] for o in others)],
                     [[s, *(spread(figures.ratios(base, o, s, "per_second")) for o in others)] for s in run["scenarios"]])
        out += ["", "## 99th percentile of latency", "",
                f"Of {base}, divided by that of the other in the same round. **Below 1, {base} is quicker.** The fixed rate (`rate`) is the row to",
                "read; in the others every proxy is as busy as it can be, and latency is little more than throughput seen from the other side.", ""]
        out += table(["", *(titles[o] for o in others)],
                     [[s, *(spread(figures.ratios(base, o, s, "p99_us")) for o in others)] for s in run["scenarios"]])
    for scenario in run["scenarios"]:
        what = HEADINGS[scenario].replace("a fixed rate", f"{run['rate']:,} requests per second")
        out += ["", f"## {scenario}: {what}", ""]
        keys = ("cpu_us", "per_second", "p50_us", "p99_us")
        out += table(["", "CPU µs/request", "requests/s", "p50 µs", "p99 µs", "errors"],
                     [[titles[p], *(spread(figures.of(p, scenario, k)) for k in keys), sum(figures.of(p, scenario, "errors"))]
                      for p in run["proxies"]])
    if threads:
        out += ["", "## A second worker thread", "",
                f"ka256, nothing bound to a core: {run['cores']} cores for proxy, load and origin together.", ""]
        twice = Figures(threads)
        names = list(dict.fromkeys(m["proxy"] for m in threads))
        out += table(["", "1 thread: requests/s", "2 threads: requests/s", "2 / 1 in a round", "CPU µs/request, 1", "CPU µs/request, 2"],
                     [[titles[n], spread(twice.of(n, "1", "per_second")), spread(twice.of(n, "2", "per_second")),
                       spread([b / a for a, b in zip(twice.of(n, "1", "per_second"), twice.of(n, "2", "per_second"))]),
                       spread(twice.of(n, "1", "cpu_us")), spread(twice.of(n, "2", "cpu_us"))] for n in names])
    if run["memory"]:
        out += ["", "## Memory", "",
                "Resident, KiB, all processes of the proxy: after its start, and with 1,000 client connections that each made requests. What a",
                "connection takes includes its share of the connections to origins.", ""]
        out += table(["", "idle", "1,000 connections", "per connection"],
                     [[titles[p], f"{m['idle_kib']:,}", f"{m['held_kib']:,}", f"{(m['held_kib'] - m['idle_kib']) / 1000:.1f}"]
                      for p, m in run["memory"].items()])
        out += [""] + [f"{titles[p]} with its own world database and six regions, idle: {kib:,} KiB." for p, kib in run["builtin_kib"].items()]
    foreign = [m["foreign"] for m in run["measured"]]
    out += ["", "## How it was measured", "",
            f"* {run['machine']}; Linux {run['kernel']}; {run['cores']} cores; load average {run['load_average'][0]} before, {run['load_average'][1]} after. On the",
            f"  proxy's core {statistics.median(foreign):.0%} of the time (at most {max(foreign):.0%}) went to others than the proxy: what is much above 0 makes",
            "  latency and requests per second doubtful, CPU per request less so.",
            "* The proxy under test is alone on one core, with one worker; the load generator and the origins share another. Those not under test",
            "  are stopped (SIGSTOP). In each round the order is another one.",
            "* CPU is the user and system time of all the proxy's processes, divided by the answers.",
            "* Each proxy finds the client in the rightmost `X-Forwarded-For` entry, looks up its country and chooses one of three regions; the region",
            "  of every answer is checked. 65,536 clients, half of them drawn again and again.",
            "* meridian writes an access log to a file and counts metrics, and both are checked against the answers; the others do neither, but for",
            "  nginx with a log, which writes the same fields, in pieces as large; its lines are counted too.",
            "* At a fixed rate latency counts from the moment a request was due, not from when it could be sent.", ""]
    return "\n".join(out)
