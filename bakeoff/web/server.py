"""The server of the site: uvicorn, with limits on how long and how many connections may keep it waiting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import socket
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from bakeoff.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from bakeoff.web.site import Site

REQUEST_SECONDS = 15.0
IDLE_SECONDS = 5
UNREAD_SECONDS = 20.0
CONNECTIONS = 512
BACKLOG = 1024
_DESCRIPTORS = 8192
_HEAD = 16 * 2**10
_ENDING_SECONDS = 2


def hosts_for(host: str, names: Iterable[str] = ()) -> frozenset[str]:
    """The Host names that a site listening on `host` goes by, lower case: its own, and `names`.

    A loopback address goes by all of localhost's names, 0.0.0.0 and :: by those and by this machine's name. The address that
    a connection came in at need not be among them.
    """
    own = {host.lower().removesuffix(".")}
    if own & {"0.0.0.0", "::"}:
        own = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}
    elif is_loopback(host):
        own |= {"localhost", "127.0.0.1", "::1"}
    return frozenset(own | {name.lower().removesuffix(".") for name in names})


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens on `host`: an address or `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def refuse_without_token(host: str, token: str | None) -> None:
    """UsageError for an address that others can reach, without a token."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"Other machines may reach {host}, so the site needs a token there: give --token new, or listen on 127.0.0.1."
        )


def serve(site: Site, host: str, port: int, *, app: ASGIApp) -> None:
    """Serve until Ctrl-C, which ends open streams too. The address is printed when connections are accepted.

    A connection is closed where a request is not whole within 15 seconds, 5 seconds after its last answer, or where an
    answer is not read for 20 seconds. Of more than 512 connections (fewer where the system's limit of descriptors is low)
    those that have kept the server waiting longest are closed.

    Args:
        port: 0 takes a free one.

    Raises:
        UsageError: the address cannot be listened on, or others can reach it and the site has no token.
    """
    refuse_without_token(host, site.token)
    descriptors = _raised_limit()
    listening = _listening(host, port)
    port = listening.getsockname()[1]
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
    token = "" if site.token is None else f"?token={quote(site.token, safe='')}"
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        # Else whoever connects from this machine could say that it comes from elsewhere.
        proxy_headers=False,
        server_header=False,
        workers=1,
        backlog=min(BACKLOG, descriptors // 8),
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=_ENDING_SECONDS,
        h11_max_incomplete_event_size=_HEAD,
    )
    server = _Server(
        config, min(CONNECTIONS, descriptors // 4), f"bakeoff: the site is at {address}{token} (Ctrl-C ends it)"
    )
    with listening, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


class _Connections(ServerState):
    """The open connections; `waiting` are those whose next request is not whole, the longest waiting first, and since when."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.waiting: OrderedDict[_Connection, float] = OrderedDict()

    def close_late(self, now: float) -> None:
        """Close what has waited too long."""
        while self.waiting and now - next(iter(self.waiting.values())) > REQUEST_SECONDS:
            self.waiting.popitem(last=False)[0].transport.abort()


class _Connection(H11Protocol):
    """One connection, which is known to `_Connections` as waiting while it is this server that waits."""

    server_state: _Connections
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._note()
        if len(self.connections) > self.server_state.most:
            oldest, _ = self.server_state.waiting.popitem(last=False)
            self.connections.discard(oldest)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server_state.waiting.pop(self, None)
        self._unset_keepalive_if_required()
        self.resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            # What the app still has to say is not wanted any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """The server ends: an answer that has begun is cut, a request that has not been answered has 2 seconds."""
        if self.cycle is None or self.cycle.response_started or self.cycle.more_body:
            self.transport.abort()
        else:
            self.cycle.keep_alive = False

    def _note(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            self.server_state.waiting.setdefault(self, self.loop.time())
        else:
            self.server_state.waiting.pop(self, None)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, most: int, greeting: str) -> None:
        super().__init__(config)
        self.server_state = self.open = _Connections(most)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.greeting, flush=True)

    async def on_tick(self, counter: int) -> bool:
        self.open.close_late(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Tasks that are cancelled would be logged with a traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    """A bound socket."""
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port; --port takes a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise UsageError(f"{host} is no address of this machine; --host takes one, such as 127.0.0.1.") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            sentence = f"Port {port} of {host} is in use; give another with --port, or --port 0 for a free one."
        elif error.errno == errno.EACCES:
            sentence = f"Port {port} needs the rights of an administrator; give one above 1023 with --port."
        else:
            sentence = f"{host} is no address of this machine; --host takes one, such as 127.0.0.1."
        raise UsageError(sentence) from None
    return listening


def _raised_limit() -> int:
    """Raise the number of descriptors that this process may have open; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return _DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        return soft
    return most
