"""Starts the proxies: each in a process group of its own, on the cores it is given, configured from a file in peers/.

It knows how a proxy is set up, held still and looked at from outside (CPU, memory), and what meridian tells of itself. It knows
nothing of load, rounds and figures.
"""
import glob
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

import install
from install import Failure

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(install.OUT, "run")
PATIENCE = 30  # seconds for a start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def render(template, path, values):
    """Writes peers/`template` to `path` with each @NAME@ replaced."""
    with open(os.path.join(HERE, "peers", template), encoding="utf-8") as source:
        text = re.sub(r"@([A-Z][A-Z0-9_]*)@", lambda name: str(values[name.group(1)]), source.read())
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)
    return path


def regions():
    """(country, region, whether meridian knows the country)"""
    with open(os.path.join(install.GEO, "regions.tsv"), encoding="utf-8") as table:
        return [(c, r, known == "known") for c, r, known in (line.split() for line in table)]


class Process:
    """A program and its children, with everything they print in a file."""

    def __init__(self, name, command, folder, cores):
        self.name, self.output = name, os.path.join(folder, "output.log")
        cores = ",".join(map(str, cores))
        with open(self.output, "wb") as output:
            # A session of its own: its members are what is measured, paused and stopped.
            self.process = subprocess.Popen(["taskset", "-c", cores, *command], stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=output, start_new_session=True)

    def printed(self):
        with open(self.output, encoding="utf-8", errors="replace") as output:
            return output.read()

    def wait_until(self, ready, what):
        """Waits for `ready()` to be true and returns what it said."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            value = ready()
            if value:
                return value
            if self.process.poll() is not None:
                raise Failure(f"{self.name} ended at its start with {self.process.returncode}; it said:\n{self.last_words()}")
            time.sleep(0.05)
        raise Failure(f"{self.name}: {what} in {PATIENCE} s; it said:\n{self.last_words()}")

    def last_words(self):
        return "\n".join("    " + line for line in self.printed().splitlines()[-20:]) or "    nothing"

    def members(self):
        found = []
        for path in glob.glob("/proc/[0-9]*/stat"):
            try:
                with open(path, encoding="utf-8", errors="replace") as stat:
                    pid, rest = path.split("/")[2], stat.read().rpartition(")")[2].split()
            except OSError:
                continue  # ended in the meantime
            if int(rest[3]) == self.process.pid and rest[0] != "Z":
                found.append(int(pid))
        return found

    def cpu_ns(self):
        """User and system time of all members since their start: what /proc/PID/stat tells in hundredths of a second, but exact.
        The number of a process's clock is made from its id as clock_getcpuclockid(3) does it."""
        return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in self.members())

    def resident_kib(self):
        total = 0
        for pid in self.members():
            with open(f"/proc/{pid}/status", encoding="utf-8") as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
        return total

    def signal(self, number):
        for pid in self.members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        if self.process.poll() is not None:
            raise Failure(f"{self.name} ended with {self.process.returncode}; it said:\n{self.last_words()}")
        self.signal(signal.SIGCONT)

    def stop(self):
        self.signal(signal.SIGCONT)
        if self.process.poll() is None:
            self.process.terminate()
        end = time.monotonic() + 5
        while self.members() and time.monotonic() < end:
            self.process.poll()
            time.sleep(0.05)
        self.signal(signal.SIGKILL)
        self.process.wait()


class Origin(Process):
    """The origins of all regions."""

    def __init__(self, cores):
        folder = folder_of("origin")
        super().__init__("origin", [os.path.join(install.KIT, "release", "origin"), "--regions", "3"], folder, cores)
        try:
            self.wait_until(lambda: self.printed().endswith("\n"), "it did not say its ports")
            self.ports = json.loads(self.printed())["ports"]
        except BaseException:
            self.stop()
            raise


class Proxy(Process):
    """One of those compared, listening."""

    def __init__(self, name, command, folder, cores, port):
        super().__init__(name, command, folder, cores)
        self.port = port
        try:
            self.wait_until(self.listens, f"port {port} did not open")
        except BaseException:
            self.stop()
            raise

    def listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def check(self, answered):
        """Called after a load with the number of its answers."""


class Meridian(Proxy):
    """meridian, which must have written a line and counted a request for every answer."""

    def __init__(self, name, binary, origin, cores, threads=1, template="meridian.toml", under=()):
        """`under`: a command to run it by."""
        folder = folder_of(f"{name}-{threads}-{template.removesuffix('.toml')}")
        self.admin, self.log, self.counted = free_port(), os.path.join(folder, "access.log"), 0
        values = common(origin, folder)
        values["ADMIN"], values["THREADS"] = self.admin, threads
        values["PINS"] = "\n".join(f'"country:{c}" = ["{r}"]' for c, r, known in regions() if known)
        # A folder of its own for the configuration: meridian watches it, and each line of the log would be a change.
        os.makedirs(os.path.join(folder, "conf"), exist_ok=True)
        if os.path.exists(self.log):
            os.remove(self.log)
        config = render(template, os.path.join(folder, "conf", "meridian.toml"), values)
        super().__init__(name, [*under, binary, "run", "--config", config], folder, cores, values["PORT"])

    def check(self, answered):
        # A line may be written ten milliseconds after its request.
        end = time.monotonic() + 5
        while True:
            lines = lines_of(self.log)
            counted = self.requests_total() - self.counted
            if lines == counted == answered:
                break
            if time.monotonic() > end:
                raise Failure(f"{self.name}: {answered} answers, but {lines} lines in its access log and {counted} in meridian_requests_total")
            time.sleep(0.02)
        self.counted += counted
        # A new log, or a disk fills.
        os.remove(self.log)
        self.process.send_signal(signal.SIGUSR1)
        self.wait_until(lambda: os.path.exists(self.log), "it did not open its access log anew")

    def requests_total(self):
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with directly.open(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("meridian_requests_total{")))


class Logging(Proxy):
    """A peer that writes a line for every answer, as meridian does."""

    def __init__(self, *arguments, log):
        self.log = log
        super().__init__(*arguments)

    def check(self, answered):
        self.wait_until(lambda: lines_of(self.log) == answered, f"not {answered} lines in its access log")
        os.truncate(self.log, 0)


def lines_of(path):
    with open(path, "rb") as log:
        return sum(block.count(b"\n") for block in iter(lambda: log.read(1 << 20), b""))


def nginx(origin, cores, under=()):
    folder, config = nginx_setup("nginx", origin, "access_log off;")
    return Proxy("nginx", [*under, *nginx_command(config)], folder, cores, config["PORT"])


def nginx_log(origin, cores, under=()):
    """The same with a log of the same fields as meridian's, written in pieces as large."""
    fields = {"ts": "time_iso8601", "request_id": "request_id", "client": "remote_addr", "peer": "realip_remote_addr", "country": "country",
              "method": "request_method", "host": "host", "path": "request_uri", "protocol": "server_protocol", "status": "status",
              "region": "region", "endpoint": "upstream_addr", "bytes_in": "request_length", "bytes_out": "body_bytes_sent",
              "duration": "request_time", "first_byte": "upstream_header_time", "connect": "upstream_connect_time"}
    line = ",".join(f'"{name}":"${variable}"' for name, variable in fields.items())
    log = os.path.join(folder_of("nginx-log"), "access.log")
    directives = f"log_format line escape=json '{{{line}}}'; access_log {log} line buffer=64k flush=1s;"
    folder, config = nginx_setup("nginx-log", origin, directives)
    if os.path.exists(log):
        os.remove(log)
    return Logging("nginx with a log", [*under, *nginx_command(config)], folder, cores, config["PORT"], log=log)


def nginx_command(config):
    return [install.program("nginx"), "-e", "stderr", "-c", config["FILE"]]


def nginx_setup(name, origin, access_log):
    folder = folder_of(name)
    values = common(origin, folder)
    values["ACCESS_LOG"] = access_log
    values["GEOIP2"], values["USER"] = install.geoip2_module(), "root" if os.geteuid() == 0 else "nobody"
    values["FILE"] = render("nginx.conf", os.path.join(folder, "nginx.conf"), values)
    return folder, values


def haproxy(origin, cores, under=()):
    folder = folder_of("haproxy")
    values = common(origin, folder)
    config = render("haproxy.cfg", os.path.join(folder, "haproxy.cfg"), values)
    return Proxy("HAProxy", [*under, install.program("haproxy"), "-db", "-q", "-f", config], folder, cores, values["PORT"])


def envoy(origin, cores, under=()):
    folder = folder_of("envoy")
    values = common(origin, folder)

    def route(region):
        route = {"@type": "type.googleapis.com/envoy.config.route.v3.Route", "match": {"prefix": "/"},
                 "route": {"cluster": region, "timeout": "0s"}}
        return json.dumps({"action": {"name": region, "typed_config": route}})

    values["ROUTE_R1"] = route("r1")
    # Quoted, since NO is Norway.
    values["COUNTRIES"] = "\n".join(f'{" " * 22}"{c}": {route(r)}' for c, r, _ in regions())
    config = render("envoy.yaml", os.path.join(folder, "envoy.yaml"), values)
    command = [*under, install.envoy(), "-c", config, "--concurrency", "1", "-l", "error", "--disable-hot-restart"]
    return Proxy("Envoy", command, folder, cores, values["PORT"])


# Each may be run by another command, `under`.
PEERS = {"nginx": nginx, "nginx-log": nginx_log, "haproxy": haproxy, "envoy": envoy}


def version(name, binary=None):
    """`nginx 1.22.1`, from whatever a program prints for it."""
    name = name.removesuffix("-log")
    flag = {"nginx": "-v", "haproxy": "-v"}.get(name, "--version")
    path = binary or (install.envoy() if name == "envoy" else install.program(name))
    try:
        done = subprocess.run([path, flag], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"{name}: {error}") from error
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return found.group() if found else "of an unknown version"


def folder_of(name):
    folder = os.path.join(RUN, name)
    os.makedirs(folder, exist_ok=True)
    return folder


def common(origin, folder):
    """What every template may ask for."""
    values = {f"R{region}": port for region, port in enumerate(origin.ports)}
    return {**values, "PORT": free_port(), "GEO": install.GEO, "RUN": folder}
