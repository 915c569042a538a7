#!/usr/bin/env python3
"""What meridian holds on to: memory, descriptors and threads, under connections that stay, connections that come and go, and a long mixed load.

    make soak                       an hour; SOAK_MINUTES=10 make soak
    benches/soak.py --minutes 10 --markdown docs/soak.md

Three plays with real processes on loopback, one after the other, against a meridian with two workers and an origin:

idle    connections that have asked once and are kept, plain and in TLS: resident memory of each, above what the process had before
churn   connections made, asked on once and dropped, at a fixed rate for a minute
soak    keep-alive load, new connections, TLS, HTTP/2 (h2load, where it is installed), a reload every 20 s and a client that hangs up in the middle;
        once a minute memory, descriptors, threads and open connections are read. They must be flat: the last third of the samples is held against the third before it.

Exit status 1 when a request failed, or when something grew.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUEST = b"GET / HTTP/1.1\r\nHost: soak.test\r\n\r\n"
# Between samples that are compared: what allocators keep for the next rush is no leak.
GROWTH = 1.10
SLACK_KB = 4096


class Stage:
    def __init__(self, meridian, folder):
        self.folder = pathlib.Path(folder)
        self.children = []
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=soak.test", "-addext", "subjectAltName=DNS:soak.test",
             "-keyout", self.folder / "site.key", "-out", self.folder / "site.pem"],
            check=True, capture_output=True)
        origin = subprocess.Popen([meridian, "origin", "only"], stdout=subprocess.PIPE, text=True)
        self.children.append(origin)
        said = origin.stdout.readline()
        self.origin = re.search(r"127\.0\.0\.1:\d+", said).group(0)
        self.plain, self.secured, self.admin = free(3)
        self.weight = 1
        self.write()
        log = open(self.folder / "log", "w")
        self.proxy = subprocess.Popen([meridian, "run", "--config", self.folder / "meridian.toml"], stdout=log, stderr=log)
        self.children.append(self.proxy)
        until(lambda: self.page("/readyz") is not None, "meridian is ready")

    def write(self):
        text = f"""
[[listen]]
address = "127.0.0.1:{self.plain}"
[[listen]]
address = "127.0.0.1:{self.secured}"
tls = {{ certificates = [{{ cert = "site.pem", key = "site.key" }}] }}
[admin]
address = "127.0.0.1:{self.admin}"
[process]
threads = 2
[limits]
connections = 100000
idle_timeout = "1h"
[log]
access = "off"
[regions.only]
[services.web]
[services.web.health]
interval = "1s"
[services.web.pools.only]
weight = {self.weight}
endpoints = ["{self.origin}"]
"""
        aside = self.folder / ".new"
        aside.write_text(text)
        aside.rename(self.folder / "meridian.toml")

    def page(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.page("/metrics") or "", re.M)
        return float(found.group(1)) if found else 0.0

    def rss_kb(self):
        status = pathlib.Path(f"/proc/{self.proxy.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    def sample(self):
        process = pathlib.Path(f"/proc/{self.proxy.pid}")
        return {
            "rss_kb": self.rss_kb(),
            "descriptors": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
            "connections": int(self.metric("meridian_connections")),
        }

    def settle(self):
        """Waits until no connection but ours to the admin page is open, and returns a sample."""
        until(lambda: self.metric("meridian_connections") == 0, "the connections are gone")
        return self.sample()

    def end(self):
        for child in reversed(self.children):
            child.send_signal(signal.SIGKILL)
            child.wait()


def until(condition, what, seconds=60):
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            sys.exit(f"error: in vain: {what}")
        time.sleep(0.05)


def free(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def ask(reader, writer):
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(head[:40])
    length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
    await reader.readexactly(length)
    return b"connection: close" not in head.lower()


async def open_to(port, context):
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="soak.test" if context else None)


async def hold(stage, port, context, count):
    """Opens `count` connections, each of which asks once; returns kibibytes of each."""
    before = stage.settle()["rss_kb"]
    held, room = [], asyncio.Semaphore(64)

    async def one():
        async with room:
            reader, writer = await open_to(port, context)
            await ask(reader, writer)
            held.append((reader, writer))

    await asyncio.gather(*[one() for _ in range(count)])
    open_now = await asyncio.to_thread(stage.metric, "meridian_connections")
    if open_now < count:
        sys.exit(f"error: {open_now} of {count} connections are open")
    each = (stage.rss_kb() - before) / count
    for _, writer in held:
        writer.transport.abort()
    return each


async def churn(stage, rate, seconds):
    """Connections at a fixed rate, of which each asks once and is dropped; returns how many, how many failed, and the samples."""
    before = stage.settle()
    failed, tasks, done = [], set(), 0

    async def one():
        nonlocal done
        try:
            reader, writer = await open_to(stage.plain, None)
            await ask(reader, writer)
            writer.transport.abort()
            done += 1
        except Exception as error:  # noqa: BLE001: whatever it was, it is counted
            failed.append(repr(error))

    begun, made = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        while made < (time.monotonic() - begun) * rate:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            made += 1
        await asyncio.sleep(0.002)
    took = time.monotonic() - begun
    await asyncio.gather(*tasks)
    after = await asyncio.to_thread(stage.settle)
    return {"made": made, "per_second": made / took, "failed": failed, "before": before, "after": after}


async def soak(stage, minutes):
    stop, failed, counts = asyncio.Event(), [], {"kept": 0, "new": 0, "tls": 0, "h2": 0, "left": 0, "reloads": 0}

    async def guarded(name, work):
        while not stop.is_set():
            try:
                await work()
                counts[name] += 1
            except Exception as error:  # noqa: BLE001
                failed.append(f"{name}: {error!r}")
                await asyncio.sleep(0.1)

    def kept():
        connection = []

        async def work():
            if not connection:
                connection.extend(await open_to(stage.plain, None))
            if not await ask(*connection):
                connection.clear()
            await asyncio.sleep(0.005)

        return work

    async def new():
        reader, writer = await open_to(stage.plain, None)
        await ask(reader, writer)
        writer.close()
        await asyncio.sleep(0.01)

    async def secured():
        reader, writer = await open_to(stage.secured, tls())
        for _ in range(5):
            await ask(reader, writer)
        writer.close()
        await asyncio.sleep(0.02)

    async def left():
        _, writer = await open_to(stage.plain, None)
        writer.write(b"POST / HTTP/1.1\r\nHost: soak.test\r\nContent-Length: 1000\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        writer.transport.abort()

    async def reload():
        stage.weight = 3 - stage.weight
        stage.write()
        await asyncio.sleep(20)

    async def http2():
        command = ["h2load", "-D", "5", "-c", "4", "-m", "8", "--rps", "50", f"https://127.0.0.1:{stage.secured}/"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = (await process.communicate())[0].decode()
        bad = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", said)
        if not bad or any(int(number) for number in bad.groups()):
            raise RuntimeError(said[-300:])

    works = [("kept", kept()) for _ in range(8)] + [("new", new), ("new", new), ("tls", secured), ("left", left)]
    works += [("reloads", reload)] + ([("h2", http2)] if shutil.which("h2load") else [])
    tasks = [asyncio.create_task(guarded(name, work)) for name, work in works]
    samples, begun = [], time.monotonic()
    every = min(60.0, minutes * 60 / 12)
    while time.monotonic() - begun < minutes * 60:
        await asyncio.sleep(every)
        samples.append(await asyncio.to_thread(stage.sample))
        print(json.dumps(samples[-1]), flush=True)
    stop.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return samples, counts, failed


def grew(samples):
    """What is larger in the last third of the samples than in the third before it."""
    third = len(samples) // 3
    worse = []
    for key, slack in [("rss_kb", SLACK_KB), ("descriptors", 8), ("threads", 1)]:
        before, after = ([s[key] for s in part] for part in (samples[-2 * third:-third], samples[-third:]))
        if max(after) > max(before) * GROWTH + slack:
            worse.append(f"{key}: {max(before)} and then {max(after)}")
    return worse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meridian", default=ROOT / "target/release/meridian")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--idle", type=int, default=30000, help="as far as the limit of open files lets it (30000)")
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--churn-seconds", type=float, default=60)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # An eighth is not for clients.
    idle = min(args.idle, hard - hard // 8 - 500)
    lines, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(os.path.abspath(args.meridian), folder)
        try:
            version = subprocess.run([args.meridian, "--version"], capture_output=True, text=True).stdout.strip()
            commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
            lines += ["# What it holds on to", "", f"{version} ({commit}), {time.strftime('%Y-%m-%d')}. Written by `make soak`; what is played is told by [benches/soak.py](../benches/soak.py).", ""]
            plain = asyncio.run(hold(stage, stage.plain, None, idle))
            secured = asyncio.run(hold(stage, stage.secured, tls(), idle))
            bound = "" if idle == args.idle else f" (of {args.idle} that were asked for: the limit of open files here is {hard}, an eighth of which is not for clients)"
            lines += [f"**{idle:,} idle connections**{bound}, each of which has asked once: {plain:.1f} KiB of resident memory each, {secured:.1f} KiB in TLS. What the kernel has for a socket is not in it.", ""]
            came = asyncio.run(churn(stage, args.rate, args.churn_seconds))
            wrong += came["failed"][:3]
            lines += [
                f"**{came['made']:,} connections made, asked on once and dropped**, {came['per_second']:,.0f} a second for {args.churn_seconds:.0f} s: {len(came['failed'])} failed. "
                f"Before and after: {came['before']['rss_kb'] / 1024:.0f} and {came['after']['rss_kb'] / 1024:.0f} MiB, "
                f"{came['before']['descriptors']} and {came['after']['descriptors']} descriptors, {came['before']['threads']} and {came['after']['threads']} threads.", ""]
            if args.minutes:
                samples, counts, failed = asyncio.run(soak(stage, args.minutes))
                wrong += failed[:3] + grew(samples)
                lines += [
                    f"**{args.minutes:.0f} minutes of mixed load**: {counts['kept']:,} requests on kept connections, {counts['new']:,} on new ones, {counts['tls'] * 5:,} in TLS on {counts['tls']:,} connections, "
                    f"{counts['h2']} rounds of HTTP/2, {counts['left']:,} clients that left in the middle, {counts['reloads']} reloads; {len(failed)} failed.", "",
                    "| minute | resident MiB | descriptors | threads | connections |", "|---|---|---|---|---|"]
                lines += [f"| {n + 1} | {s['rss_kb'] / 1024:.1f} | {s['descriptors']} | {s['threads']} | {s['connections']} |" for n, s in enumerate(samples)]
                lines += [""]
        finally:
            stage.end()
    text = "\n".join(lines)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    if wrong:
        sys.exit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
