"""The local site under load, from `bakeoff serve` in a process of its own: pages, a full search, and slow connections.

The first page counts with all that it links to, on a connection of its own like that of a new visitor. Load is fifty
connections that ask again and again, by wrk where it is at hand. The slow connections, ten thousand in waves, each send a
part of a request; the first page is asked for meanwhile.

    python benchmarks/site.py [--requests N] [--seconds N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SEARCH = "/?q=language+models+training&show=all"
SLOW, WAVE = 10_000, 1250
BEGUN = b"GET / HTTP/1.1\r\nHost: local"


class Row(NamedTuple):
    """One measured number, and what it should be at most, where that is fixed."""

    value: float
    unit: str
    goal: float | None = None


class Site(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    def memory(self) -> float:
        """The largest resident set so far, in megabytes."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self) -> float:
        """Seconds of both kinds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> bytes:
        """The body of a page, over a new connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            received = b""
            while piece := connection.recv(2**18):
                received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise SystemExit(f"{path} was answered with {head[:60]!r}: nothing is reported.")
        return body

    def first_page(self) -> int:
        """Fetch the first page with what it links to; bytes."""
        page = self.get("/")
        return len(page) + sum(
            len(self.get(path.decode())) for path in sorted(set(re.findall(rb'"(/static/[^"]+)"', page)))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="times that a page is asked for")
    parser.add_argument("--seconds", type=int, default=5, help="how long the load lasts")
    parser.add_argument("--json", action="store_true", help="print nothing but the last line, which is JSON")
    options = parser.parse_args()
    rows: dict[str, Row] = {}
    with started() as site:
        size = site.first_page()
        rows |= timed("first page", [once(site.first_page) for _ in range(options.requests)], 100)
        rows["first page, bytes"] = Row(size / 1000, "kB", 150)
        results = len(set(re.findall(rb'href="/papers/([^"/?#]+)"', site.get(SEARCH))))
        searches = [once(lambda: site.get(SEARCH)) for _ in range(options.requests // 4)]
        rows |= timed(f"search with {results} results", searches, 200)
        rows |= load(site, options.seconds)
        rows |= slow(site)
    if not options.json:
        width = max(map(len, rows))
        print(f"{'':{width}}  {'measured':>10}  {'at most':>8}")
        for label, row in rows.items():
            print(
                f"{label:{width}}  {row.value:10,.1f}  {'' if row.goal is None else f'{row.goal:,.0f}':>8}  {row.unit}"
            )
    print(json.dumps({"benchmark": "site", "rows": {label: row._asdict() for label, row in rows.items()}}))


@contextlib.contextmanager
def started() -> Iterator[Site]:
    """The site of an empty folder, which must end without a word on stderr."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        command = [sys.executable, "-m", "bakeoff", "serve", "--port", "0", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            if found is None:
                raise SystemExit(f"The site did not begin:\n{(Path(folder) / 'log').read_text()[-2000:]}")
            yield Site(process, int(found[1]))
            process.send_signal(signal.SIGINT)
            process.wait(20)
            log.seek(0)
            if said := log.read():
                raise SystemExit(f"The site complained:\n{said[-2000:]}")
        finally:
            process.kill()
            process.wait()


def once(work: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def timed(label: str, taken: list[float], goal: float | None = None) -> dict[str, Row]:
    """Median and 99th percentile of milliseconds."""
    return {
        f"{label}, median": Row(statistics.median(taken), "ms", goal),
        f"{label}, 99th percentile": Row(sorted(taken)[int(0.99 * (len(taken) - 1))], "ms"),
    }


def load(site: Site, seconds: int) -> dict[str, Row]:
    """The first page, from fifty connections at once."""
    if wrk := shutil.which("wrk"):
        command = [wrk, "-t1", "-c50", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{site.port}/"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate, late = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
        assert rate is not None
        assert late is not None
        scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[late[2]]
        wrong = sum(map(int, re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", said)))
        return {
            "load (wrk)": Row(float(rate[1]), "requests a second"),
            "load (wrk), 99th percentile": Row(scale * float(late[1]), "ms"),
            "load (wrk), errors": Row(wrong, "", 0),
        }
    taken, wrong = asyncio.run(hammered(site.port, seconds))
    return {
        "load": Row(len(taken) / seconds, "requests a second"),
        **timed("load", taken),
        "load, errors": Row(wrong, "", 0),
    }


async def hammered(port: int, seconds: int) -> tuple[list[float], int]:
    """Milliseconds of every request that fifty connections made, and how many failed."""
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def visitor() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (began := time.perf_counter()) < until:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                if length is None or b" 200 " not in head[:15]:
                    return 1
                await reader.readexactly(int(length[1]))
                taken.append(1000 * (time.perf_counter() - began))
        except (OSError, asyncio.IncompleteReadError):
            return 1
        finally:
            writer.close()
        return 0

    return taken, sum(await asyncio.gather(*(visitor() for _ in range(50))))


def slow(site: Site) -> dict[str, Row]:
    """Ten thousand connections that never finish what they ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * WAVE)), hard))
    memory, before, spent, began = site.memory(), site.descriptors(), site.cpu(), time.perf_counter()
    most, taken = 0, []
    for _ in range(SLOW // WAVE):
        with contextlib.ExitStack() as opened:
            for number in range(WAVE):
                connection = opened.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=30))
                # Closed at once, so that no port stays taken.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(ConnectionError):
                    connection.send(BEGUN)
                if number % 250 == 249:
                    taken.append(once(lambda: site.get("/")))
            most = max(most, site.descriptors())
    took = time.perf_counter() - began
    for _ in range(500):
        if site.descriptors() <= before:
            break
        time.sleep(0.01)
    return {
        "slow connections": Row(SLOW / took, "a second"),
        **timed("first page meanwhile", taken),
        "descriptors of the server, at most": Row(most, ""),
        "descriptors that it kept": Row(max(0, site.descriptors() - before), "", 0),
        "memory that it took for them": Row(site.memory() - memory, "MB", 30),
        "its CPU time for them": Row(site.cpu() - spent, "s"),
    }


if __name__ == "__main__":
    main()
