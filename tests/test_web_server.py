"""The server of the site, really running: slow and broken connections, forms too large, and its end."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
from bakeoff.errors import UsageError
from bakeoff.web import server
from bakeoff.web.server import hosts_for, is_loopback, serve

SITE = """
import asyncio, sys
from dataclasses import dataclass
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from bakeoff.web import server
from bakeoff.web.safety import Guard

host, token, changed = sys.argv[1], sys.argv[2] or None, eval(sys.argv[3])
for name, value in changed.items():
    assert hasattr(server, name)
    setattr(server, name, value)

@dataclass(frozen=True)
class Place:
    hosts: frozenset
    token: str | None
    secret: bytes = b"s" * 32

async def page(request):
    return PlainTextResponse("a page")

async def form(request):
    return PlainTextResponse(str(len(await request.body())))

async def large(request):
    return StreamingResponse(("x" * 2**16 for _ in range(500)), media_type="text/plain")

async def who(request):
    return PlainTextResponse(f"{request.url.scheme} {request.client.host} {request.url.netloc}")

async def events(request):
    async def endless():
        while True:
            yield "data: x\\n\\n"
            await asyncio.sleep(0.05)
    return StreamingResponse(endless(), media_type="text/event-stream")

site = Place(server.hosts_for(host), token)
routes = [Route("/", page), Route("/form", form, methods=["POST"]), Route("/large", large), Route("/who", who), Route("/events", events)]
server.serve(site, host, 0, app=Guard(Starlette(routes=routes), site))
"""


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    greeting: str
    port: int
    log: Path

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self, which: str = "VmHWM") -> float:
        """Megabytes: VmRSS now, VmHWM at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) / 1024

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        # Closed at once, so that no port stays taken.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return connection

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def running(
    folder: Path, host: str = "127.0.0.1", token: str = "", descriptors: int = 0, **changed: float
) -> Iterator[Running]:
    """A server whose constants may be changed, ended by Ctrl-C, after which it must not have complained."""
    log = folder / f"log-{time.monotonic_ns()}"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))) if descriptors else None
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SITE, host, token, repr(changed)],
            stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=limit,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        assert greeting, log.read_text()
        found = Running(process, greeting, int(re.search(r":(\d+)/", greeting)[1]), log)
        yield found
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() == ""
        assert found.said() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        tmp_path_factory.mktemp("impatient"), REQUEST_SECONDS=1, IDLE_SECONDS=0.5, UNREAD_SECONDS=0.5
    ) as found:
        yield found


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


PAGE = head("GET / HTTP/1.1", "Host: localhost")
STREAM = head("GET /events HTTP/1.1", "Host: localhost")
FORM = (
    "POST /form HTTP/1.1",
    "Host: localhost",
    "Origin: http://localhost",
    "Content-Type: application/x-www-form-urlencoded",
)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(2**20):
            received += piece
    return received


def answer_of(connection: socket.socket, count: int = 1) -> bytes:
    """All that comes until so many pages are whole."""
    received = b""
    while received.count(b"a page") < count:
        piece = connection.recv(2**20)
        assert piece, received
        received += piece
    return received


def page_of(site: Running) -> bytes:
    with site.connect() as connection:
        connection.sendall(head("GET / HTTP/1.1", "Host: localhost", "Connection: close"))
        return rest_of(connection)


def fewest(site: Running) -> int:
    """The descriptors of a server with which nobody is connected."""
    seen = [site.descriptors()]
    while len(seen) < 20 or min(seen) != max(seen[-20:]):
        time.sleep(0.02)
        seen.append(site.descriptors())
    return seen[-1]


def until(met: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    for _ in range(2000):
        if met():
            return
        time.sleep(0.01)
    raise AssertionError("It never came.")


def test_a_page_is_answered_without_naming_the_server(site: Running) -> None:
    answered = page_of(site)
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answered.endswith(b"\r\n\r\na page")
    assert b"\nserver:" not in answered.lower()
    assert site.greeting == f"bakeoff: the site is at http://127.0.0.1:{site.port}/ (Ctrl-C ends it)\n"


def test_ten_thousand_slow_connections_keep_nobody_out(site: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    wave = min(1250, min(hard, 4096) // 2)
    page_of(site)
    before, memory = site.descriptors(), site.memory()
    begun = [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: local", FORM[0].encode() + b"\r\n"]
    begun.append(head(*FORM, "Content-Length: 100") + b"csrf=")
    opened = 0
    try:
        while opened < 10_000:
            held = [site.connect() for _ in range(wave)]
            for number, connection in enumerate(held):
                with contextlib.suppress(ConnectionError):
                    connection.send(begun[number % len(begun)])
            opened += wave
            assert page_of(site).endswith(b"a page")
            assert site.descriptors() <= server.CONNECTIONS + before
            for connection in held:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: site.descriptors() <= before)
    assert site.memory() - memory < 30
    assert site.said() == ""


@pytest.mark.parametrize("chunked", [False, True])
def test_a_form_of_100_mb_is_refused_in_little_memory(site: Running, chunked: bool) -> None:
    memory, piece = site.memory(), b"a" * 10**6
    with site.connect() as connection:
        length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000"
        connection.sendall(head(*FORM, length))
        for _ in range(100):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    assert site.memory() - memory < 30
    assert page_of(site).endswith(b"a page")


def test_a_length_that_is_too_large_is_refused_at_once(site: Running) -> None:
    for expecting in ((), ("Expect: 100-continue",)):
        with site.connect() as connection:
            connection.sendall(head(*FORM, "Content-Length: 100000000", *expecting))
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("request_lines", "status"),
    [
        (("GET / HTTP/1.1", "Host: rebound.example"), 421),
        (("GET http://localhost/ HTTP/1.1", "Host: localhost"), 400),
        (("GET http://rebound.example/ HTTP/1.1", "Host: localhost"), 400),
        (("GET / HTTP/1.1",), 400),
        (("GET / HTTP/1.0",), 400),
        (("GET / HTTP/1.1", "Host: localhost", "Host: rebound.example"), 400),
        (("GET / HTTP/1.1", "Host: localhost", "X: " + "a" * 300_000), 400),
        (("GET /" + "a" * 300_000 + " HTTP/1.1", "Host: localhost"), 400),
        (("DELETE / HTTP/1.1", "Host: localhost"), 405),
        (("CONNECT localhost:80 HTTP/1.1", "Host: localhost"), 405),
        (("GET / HTTP/1.1", "Host: localhost", "Connection: upgrade", "Upgrade: websocket"), 200),
        (("GET /../../etc/passwd HTTP/1.1", "Host: localhost"), 404),
        ((*FORM, "Content-Length: 5", "Content-Length: 6"), 400),
        ((*FORM, "Content-Length: 5", "Transfer-Encoding: chunked"), 403),
    ],
)  # fmt: skip
def test_misshapen_requests(site: Running, request_lines: tuple[str, ...], status: int) -> None:
    with site.connect() as connection:
        connection.sendall(
            head(*request_lines) + (b"5\r\na=b&c\r\n0\r\n\r\n" if "chunked" in request_lines[-1] else b"")
        )
        answered = connection.recv(2**16)
        assert re.match(rb"HTTP/1.1 (\d+)", answered)[1] == str(status).encode(), answered[:500]
    assert site.said() == ""


def test_nobody_may_say_that_it_comes_from_elsewhere(site: Running) -> None:
    forwarded = ("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: rebound.example")
    with site.connect() as connection:
        connection.sendall(head("GET /who HTTP/1.1", "Host: localhost", "Connection: close", *forwarded))
        assert rest_of(connection).endswith(b"\r\n\r\nhttp 127.0.0.1 localhost")


def test_rubbish_leaves_no_trace_in_the_log(site: Running) -> None:
    draw = random.Random(0)
    chunked = head(*FORM, "Transfer-Encoding: chunked")
    rubbish = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n\r\n", b"GET\r\n\r\n", PAGE + b"rubbish\r\n\r\n", PAGE * 200,
        chunked + b"rubbish\r\n", chunked + b"5\r\nhello" + b"rubbish\r\n\r\n", chunked + b"200000\r\n" + bytes(2**21) + b"rubbish\r\n",
        head("GET / HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked") + b"rubbish\r\n\r\n", STREAM + b"rubbish\r\n\r\n",
        head("GET /large HTTP/1.1", "Host: localhost") * 3, head("PRI * HTTP/2.0") + b"SM\r\n\r\n", head(*FORM, "Content-Length: x"),
        head("HEAD / HTTP/1.1", "Host: localhost") + PAGE, head("GET / HTTP/1.1", "Host: \x01\xff"),
        head("GET /%ff%00 HTTP/1.1", "Host: localhost"),
    ]  # fmt: skip
    rubbish += [draw.randbytes(draw.randrange(1, 300)) for _ in range(20)]
    for _ in range(60):
        torn = bytearray(draw.choice([PAGE, chunked + b"5\r\na=b&c\r\n0\r\n\r\n", STREAM]))
        for _ in range(draw.randrange(1, 4)):
            torn[draw.randrange(len(torn))] = draw.randrange(256)
        rubbish.append(bytes(torn))
    for sent in rubbish:
        for leaves in (False, True):
            with site.connect() as connection, contextlib.suppress(ConnectionError):
                middle = draw.randrange(len(sent))
                connection.sendall(sent[:middle])
                connection.sendall(sent[middle:])
                if not leaves:
                    connection.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        connection.recv(2**16)
    assert page_of(site).endswith(b"a page")
    assert site.said() == ""


def test_requests_that_do_not_end_are_closed(impatient: Running) -> None:
    begun = [
        b"", b"GET / HT", PAGE[:-2], head(*FORM, "Content-Length: 9") + b"a=b",
        head(*FORM, "Transfer-Encoding: chunked") + b"5\r\na", PAGE, PAGE + PAGE[:9],
    ]  # fmt: skip
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(impatient.connect()) for _ in begun]
        for sent, connection in zip(begun, connections, strict=True):
            connection.sendall(sent)
        for sent, connection in zip(begun, connections, strict=True):
            answered = rest_of(connection)
            assert answered.endswith(b"a page") if sent.startswith(PAGE) else answered == b"", sent


def test_a_byte_now_and_then_does_not_help(impatient: Running) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(PAGE[:-2])
        for _ in range(1000):
            connection.sendall(b"X: y\r\n")
            time.sleep(0.02)

    with impatient.connect() as connection, pytest.raises(ConnectionError):
        trickle(connection)


def test_a_connection_may_be_used_again(site: Running) -> None:
    with site.connect() as connection:
        for _ in range(3):
            connection.sendall(PAGE)
            answer_of(connection)
        connection.sendall(PAGE * 3)
        answer_of(connection, 3)


def test_a_stream_may_last(impatient: Running) -> None:
    with impatient.connect() as connection:
        connection.sendall(STREAM)
        received = b""
        while received.count(b"data: x") < 25:
            received += connection.recv(2**16)
        assert b"text/event-stream" in received


def test_an_answer_that_nobody_reads_is_given_up(impatient: Running) -> None:
    before = fewest(impatient)
    with impatient.connect() as connection:
        connection.sendall(head("GET /large HTTP/1.1", "Host: localhost"))
        assert connection.recv(1)
        until(lambda: impatient.descriptors() == before)
        assert 0 < len(rest_of(connection)) < 500 * 2**16


def test_at_the_limit_the_oldest_that_wait_are_closed_and_streams_stay(tmp_path: Path) -> None:
    with running(tmp_path, CONNECTIONS=12) as site, contextlib.ExitStack() as opened:
        streams = [opened.enter_context(site.connect()) for _ in range(4)]
        for connection in streams:
            connection.sendall(STREAM)
            assert connection.recv(2**16)
        slow = [opened.enter_context(site.connect()) for _ in range(30)]
        assert page_of(site).endswith(b"a page")
        assert rest_of(slow[0]) == b""
        slow[-1].sendall(PAGE)
        answer_of(slow[-1])
        for connection in streams:
            assert connection.recv(2**16)


def test_ctrl_c_ends_open_streams_and_requests(tmp_path: Path) -> None:
    with (
        contextlib.ExitStack() as opened,
        running(tmp_path, token="to ken&", descriptors=200, _ENDING_SECONDS=60) as site,
    ):
        assert site.greeting.endswith(f"http://127.0.0.1:{site.port}/?token=to%20ken%26 (Ctrl-C ends it)\n")
        limits = Path(f"/proc/{site.process.pid}/limits").read_text()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert int(re.search(r"Max open files\s+(\d+)", limits)[1]) == min(hard, 8192)
        connection = opened.enter_context(site.connect())
        connection.sendall(head("GET /?token=to%20ken%26 HTTP/1.1", "Host: localhost"))
        answered = connection.recv(2**16).decode()
        cookie = re.search(r"set-cookie: (bakeoff-key[^;]*);", answered)[1]
        for path in ("/events", "/large"):
            connection = opened.enter_context(site.connect())
            connection.sendall(head(f"GET {path} HTTP/1.1", "Host: localhost", f"Cookie: {cookie}"))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        for sent in (b"", PAGE[:-2], head(*FORM, "Content-Length: 9")):
            opened.enter_context(site.connect()).sendall(sent)


@dataclass(frozen=True)
class Place:
    """What the server reads of a site."""

    token: str | None = None


async def nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("It is never called.")


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"Port {port} of 127.0.0.1 is in use; .*--port"):
            serve(Place(), "127.0.0.1", port, app=nothing)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("x" * 70, 0), ("127.0.0.1", 99999), ("127.0.0.1", -1)])
def test_an_address_that_is_none_is_one_sentence(host: str, port: int) -> None:
    with pytest.raises(UsageError, match="--(host|port)"):
        serve(Place("token"), host, port, app=nothing)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_need_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="token"):
        serve(Place(), host, 0, app=nothing)


def test_the_names_of_an_address() -> None:
    loopback = {"localhost", "127.0.0.1", "::1"}
    for host in ("127.0.0.1", "localhost", "::1", "LOCALHOST"):
        assert is_loopback(host)
        assert hosts_for(host) == loopback
    assert hosts_for("127.0.0.2") == loopback | {"127.0.0.2"}
    assert hosts_for("192.0.2.1") == {"192.0.2.1"}
    assert hosts_for("192.0.2.1", ["Box.Example."]) == {"192.0.2.1", "box.example"}
    assert hosts_for("0.0.0.0") >= loopback
    assert "0.0.0.0" not in hosts_for("0.0.0.0")
