"""The guard before the site: what other sites' pages, other hosts and oversized requests try, each refused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

import pytest

pytest.importorskip("starlette")
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bakeoff.errors import UsageError
from bakeoff.web import safety
from bakeoff.web.safety import Guard, csrf_token

SECRET = b"s" * 32
SESSION = "A" * 43
COOKIE = "bakeoff-session-8000"
OWN = "http://localhost:8000"
HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Place:
    """What the guard reads of a site."""

    hosts: frozenset[str] = HOSTS
    secret: bytes = SECRET
    token: str | None = None


@dataclass
class Answered:
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    chunks: int = 0
    asked: int = 0

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2 or name == "set-cookie", (name, values)
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


async def echo(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{request.method} {request.scope['csrf']} {body.decode()}", headers={"x-reached": "yes"})


async def broken(request: Request) -> Response:
    raise RuntimeError("the inner secret")


async def misunderstood(request: Request) -> Response:
    raise UsageError("Give <another> path.")


async def events(request: Request) -> Response:
    async def numbers() -> Iterable[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0)

    return StreamingResponse(numbers(), media_type="text/event-stream")


def guarded(token: str | None = None) -> Starlette:
    routes = [
        Route("/", echo, methods=["GET", "POST"]),
        Route("/broken", broken),
        Route("/misunderstood", misunderstood),
        Route("/events", events),
        Route("/static/site.css", echo),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, site=Place(token=token))])


def ask(
    app: Starlette | Guard,
    target: str = "/",
    *,
    method: str = "GET",
    headers: Sequence[tuple[str, str]] = (),
    host: str | None = "localhost:8000",
    chunks: Iterable[bytes] = (b"",),
    client: str = "127.0.0.1",
    server: tuple[str, int] | None = ("127.0.0.1", 8000),
) -> Answered:
    """One request, as a server would hand it on."""
    answered = Answered()
    path, _, query = target.partition("?")
    sent = [*([("host", host)] if host is not None else []), *headers]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": re.sub("%2[Ff]", "/", path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent], "server": server,
        "client": (client, 50000), "state": {},
    }  # fmt: skip
    bodies = iter(chunks)

    async def run() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, object]:
            for chunk in bodies:
                answered.asked += 1
                return {"type": "http.request", "body": chunk, "more_body": chunk != b""}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                assert answered.status == 0
                answered.status = message["status"]
                answered.headers = [(k.decode().lower(), v.decode()) for k, v in message["headers"]]
            else:
                answered.body += message.get("body", b"")
                answered.chunks += bool(message.get("body"))
                if not message.get("more_body"):
                    gone.set()

        await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(run())
    return answered


def post(
    app: Starlette | Guard,
    target: str = "/",
    *,
    fields: dict[str, str] | None = None,
    csrf: str | None = csrf_token(SECRET, SESSION),
    cookie: str | None = f"{COOKIE}={SESSION}",
    headers: Sequence[tuple[str, str]] = (("origin", OWN),),
    body: bytes | None = None,
    kind: str = "application/x-www-form-urlencoded",
    **other: object,
) -> Answered:
    """A form, as a page of the site sends it unless something is told otherwise."""
    given = {**(fields or {}), **({} if csrf is None else {"csrf": csrf})}
    sent = urlencode(given).encode() if body is None else body
    named = [("content-type", kind), *headers, *([] if cookie is None else [("cookie", cookie)])]
    return ask(app, target, method="POST", headers=named, chunks=(sent, b""), **other)


APP = guarded()


def reached(answered: Answered) -> bool:
    return answered.header("x-reached") == "yes"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]:8000",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
    ],
)
def test_own_hosts_are_answered(host: str) -> None:
    assert reached(ask(APP, host=host))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebound.example", 421), ("rebound.example:8000", 421), ("127.0.0.1.rebound.example", 421),
        ("localhost.rebound.example", 421), ("rebound.localhost", 421), ("192.168.1.5:8000", 421), ("[::2]", 421),
        ("127.1", 421), ("[::ffff:10.0.0.1]", 421), ("2130706433", 421), ("localhost..", 421), ("", 400), (None, 400),
        ("localhost@rebound.example", 400), ("rebound.example@localhost", 400), ("localhost:port", 400), ("localhost:", 400),
        ("localhost, rebound.example", 400), ("http://localhost", 400), ("localhost/", 400), ("::1", 400), ("[localhost]", 400),
        ("[::1", 400), ("löcalhost", 400), ("localhost:٨٠٠٠".encode().decode("latin-1"), 400), ("[::1%25lo]", 400),
    ],
)  # fmt: skip
def test_foreign_and_misshapen_hosts_are_refused(host: str | None, status: int) -> None:
    answered = ask(APP, host=host)
    assert answered.status == status
    assert not reached(answered)
    assert answered.header("content-security-policy")


def test_two_hosts_are_refused() -> None:
    assert ask(APP, headers=[("host", "rebound.example")]).status == 400


def test_the_address_of_the_connection_is_a_host_but_no_other_address() -> None:
    assert reached(ask(APP, host="192.168.1.5:8000", server=("192.168.1.5", 8000)))
    assert reached(ask(APP, host="192.168.1.5:8000", server=("::ffff:192.168.1.5", 8000)))
    assert ask(APP, host="192.168.1.6:8000", server=("192.168.1.5", 8000)).status == 421
    assert ask(APP, host="rebound.example", server=("rebound.example", 8000)).status == 421


def test_a_rebound_name_cannot_post_though_its_page_has_the_same_origin() -> None:
    answered = post(APP, host="rebound.example:8000", headers=[("origin", "http://rebound.example:8000")])
    assert answered.status == 421


@pytest.mark.parametrize(
    "target", ["http://localhost:8000/", "http://rebound.example/", "*", "//rebound.example/", "/\\rebound.example"]
)
def test_targets_that_are_no_path_are_refused(target: str) -> None:
    assert ask(APP, target).status == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "QUERY"])
def test_other_methods_are_refused(method: str) -> None:
    answered = ask(APP, method=method)
    assert answered.status == 405
    assert not reached(answered)


def test_head_is_answered_as_get_is() -> None:
    answered = ask(APP, method="HEAD")
    assert answered.status == 200
    assert answered.text.startswith("GET ")


def test_a_form_of_the_site_reaches_the_app_with_its_body_and_token() -> None:
    answered = post(APP, fields={"model": "référence & <b>"})
    assert answered.status == 200
    token = csrf_token(SECRET, SESSION)
    assert answered.text == f"POST {token} " + urlencode({"model": "référence & <b>", "csrf": token})
    assert answered.header("set-cookie") is None


def test_a_body_in_many_chunks_is_handed_on_whole() -> None:
    body = urlencode({"csrf": csrf_token(SECRET, SESSION), "text": "x" * 1000}).encode()
    chunks = [body[i : i + 7] for i in range(0, len(body), 7)] + [b""]
    headers = [
        ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
        ("origin", OWN),
        ("cookie", f"{COOKIE}={SESSION}"),
    ]
    answered = ask(APP, method="POST", headers=headers, chunks=chunks)
    assert answered.text.endswith(body.decode())


FOREIGN = [
    [("origin", "http://rebound.example")],
    [("origin", "null")],
    [("origin", "")],
    [("origin", "http://localhost:8888")],
    [("origin", "https://localhost:8000")],
    [("origin", "http://localhost")],
    [("origin", "http://localhost:8000.rebound.example")],
    [("origin", "http://localhost:8000@rebound.example")],
    [("origin", "http://localhost:8000/")],
    [("origin", OWN), ("origin", "http://rebound.example")],
    [("origin", "http://rebound.example"), ("referer", OWN + "/"), ("sec-fetch-site", "same-origin")],
    [("sec-fetch-site", "cross-site")],
    [("sec-fetch-site", "same-site")],
    [("sec-fetch-site", "none")],
    [("sec-fetch-site", "cross-site"), ("referer", OWN + "/")],
    [("referer", "http://rebound.example/")],
    [("referer", "http://rebound.example/" + OWN)],
    [("referer", "http://localhost:8000.rebound.example/")],
    [("referer", "http://localhost:8000@rebound.example/")],
    [("referer", "")],
    [],
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_form_that_another_site_sends_is_refused_with_a_right_token_even(headers: list[tuple[str, str]]) -> None:
    answered = post(APP, headers=headers)
    assert answered.status == 403
    assert not reached(answered)


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ([("origin", OWN)], "localhost:8000"),
        ([("origin", "http://localhost")], "localhost"),
        ([("origin", "http://localhost:80")], "localhost"),
        ([("origin", "http://[::1]:8000")], "[::1]:8000"),
        ([("origin", "http://LOCALHOST:8000")], "Localhost.:8000"),
        ([("sec-fetch-site", "same-origin")], "localhost:8000"),
        ([("referer", OWN + "/compare?x=http://rebound.example")], "localhost:8000"),
    ],
)
def test_a_form_that_the_site_sends_is_let_through(headers: list[tuple[str, str]], host: str) -> None:
    assert reached(post(APP, headers=headers, host=host))


@pytest.mark.parametrize(
    "changed",
    [
        {"csrf": None},
        {"csrf": ""},
        {"csrf": "0" * 64},
        {"csrf": csrf_token(SECRET, "B" * 43)},
        {"csrf": csrf_token(b"t" * 32, SESSION)},
        {"csrf": csrf_token(SECRET, SESSION).upper()},
        {"csrf": csrf_token(SECRET, SESSION) + "é"},
        {"csrf": SESSION},
        {"cookie": None},
        {"cookie": f"{COOKIE}=" + "B" * 43},
        {"cookie": f"{COOKIE}="},
        {"cookie": f"bakeoff-session-9000={SESSION}"},
        {"cookie": f"{COOKIE}=short", "csrf": csrf_token(SECRET, "short")},
        {"body": f"csrf={csrf_token(SECRET, SESSION)}&csrf=x".encode()},
        {"target": "/?csrf=" + csrf_token(SECRET, SESSION), "csrf": None},
    ],
)
def test_missing_wrong_and_other_sessions_tokens_are_refused(changed: dict[str, object]) -> None:
    answered = post(APP, **changed)
    assert answered.status == 403
    assert not reached(answered)
    assert answered.header("set-cookie") is None


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
def test_other_kinds_of_body_are_refused(kind: str) -> None:
    assert post(APP, kind=kind).status == 415


def test_a_body_that_is_too_large_by_its_length_is_refused_before_it_is_read() -> None:
    headers = [("origin", OWN), ("content-length", str(100 * 10**6))]
    answered = post(APP, headers=headers)
    assert (answered.status, answered.asked) == (413, 0)


def test_a_body_without_a_length_is_refused_at_the_first_chunk_beyond_the_limit() -> None:
    headers = [
        ("origin", OWN),
        ("content-type", "application/x-www-form-urlencoded"),
        ("cookie", f"{COOKIE}={SESSION}"),
    ]
    answered = ask(APP, method="POST", headers=headers, chunks=(bytes(2**16) for _ in range(10**6)))
    assert (answered.status, answered.asked) == (413, safety.BODY // 2**16 + 1)


def test_as_much_as_is_allowed_is_let_through() -> None:
    start = f"csrf={csrf_token(SECRET, SESSION)}&text=".encode()
    assert reached(post(APP, body=start + b"x" * (safety.BODY - len(start))))
    assert post(APP, body=start + b"x" * (safety.BODY + 1 - len(start))).status == 413


def test_many_fields_and_raw_bytes_are_refused() -> None:
    token = f"csrf={csrf_token(SECRET, SESSION)}".encode()
    assert reached(post(APP, body=token + b"&a=" * (safety.FIELDS - 1)))
    assert post(APP, body=token + b"&a=" * safety.FIELDS).status == 413
    assert post(APP, body=token + "&a=é".encode()).status == 400


def test_long_targets_and_headers_and_lengths_that_are_none_are_refused() -> None:
    assert reached(ask(APP, "/?" + "a" * (safety.TARGET - 1)))
    assert ask(APP, "/?" + "a" * safety.TARGET).status == 414
    assert ask(APP, headers=[("x-long", "a" * safety.HEAD)]).status == 431
    for length in ("-1", "+5", "1e3", "٣".encode().decode("latin-1"), "5, 5", ""):
        assert ask(APP, headers=[("content-length", length)]).status == 400
    assert ask(APP, headers=[("content-length", "5")], chunks=(b"hello", b"")).status == 400
    assert ask(APP, headers=[("transfer-encoding", "chunked")], chunks=(b"hello", b"")).status == 400
    assert reached(ask(APP, headers=[("content-length", "0")]))


def test_every_answer_carries_the_headers() -> None:
    answers = [
        ask(APP),
        ask(APP, "/absent"),
        ask(APP, host="rebound.example"),
        ask(APP, method="PUT"),
        ask(APP, "/events"),
    ]
    for answered in answers:
        policy = answered.header("content-security-policy")
        assert policy is not None
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:;")
        assert policy.endswith("connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
        assert answered.header("x-content-type-options") == "nosniff"
        assert answered.header("referrer-policy") == "same-origin"
        assert answered.header("cross-origin-opener-policy") == "same-origin"
        assert answered.header("cross-origin-resource-policy") == "same-origin"
        assert "camera=()" in (answered.header("permissions-policy") or "")
        assert answered.header("cache-control") == "no-store"


def test_static_files_may_be_cached_and_set_no_cookie() -> None:
    answered = ask(APP, "/static/site.css")
    assert reached(answered)
    assert answered.header("cache-control") == "no-cache"
    assert answered.header("set-cookie") is None


def test_a_first_visit_gets_a_session_that_later_pages_keep() -> None:
    first = ask(APP)
    cookie = first.header("set-cookie") or ""
    assert re.fullmatch(rf"{COOKIE}=[A-Za-z0-9_-]{{43}}; HttpOnly; SameSite=Strict; Path=/", cookie)
    given = cookie.partition(";")[0]
    again = ask(APP, headers=[("cookie", f"other=1; {given}")])
    assert again.header("set-cookie") is None
    assert again.text == first.text
    assert first.text.split()[1] == csrf_token(SECRET, given.partition("=")[2])
    assert reached(post(APP, cookie=given, csrf=first.text.split()[1]))
    assert ask(APP).text != first.text


@pytest.mark.parametrize("app", [APP, Guard(Starlette(routes=[Route("/broken", broken)]), Place())])
def test_what_the_app_raises_is_not_shown(app: Starlette, capfd: pytest.CaptureFixture[str]) -> None:
    answered = ask(app, "/broken")
    assert answered.status == 500
    assert "the terminal in which the site runs says what" in answered.text
    assert answered.header("content-security-policy")
    assert "inner secret" not in answered.text
    assert "Traceback" not in answered.text
    assert "RuntimeError: the inner secret" in capfd.readouterr().err


def test_a_usage_error_is_shown_escaped() -> None:
    answered = ask(APP, "/misunderstood")
    assert answered.status == 400
    assert "Give &lt;another&gt; path." in answered.text


def test_a_stream_passes_piece_by_piece() -> None:
    answered = ask(APP, "/events")
    assert answered.status == 200
    assert answered.chunks == 3
    assert answered.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_streams_are_limited_in_number_and_counted_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "STREAMS", 2)
    begun = asyncio.Event()
    statuses: list[int] = []

    async def app(scope: object, receive: object, send: object) -> None:
        async def endless() -> Iterable[str]:
            while True:
                yield "data: x\n\n"
                await asyncio.sleep(0.01)

        await StreamingResponse(endless(), media_type="text/event-stream")(scope, receive, send)

    guard = Guard(app, Place())

    async def visit(stay: asyncio.Event) -> None:
        async def receive() -> dict[str, object]:
            await stay.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                begun.set()
            elif not message.get("more_body"):
                stay.set()

        scope = {
            "type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "scheme": "http", "path": "/", "query_string": b"",
            "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        await guard(scope, receive, send)

    async def run() -> None:
        stays = [asyncio.Event() for _ in range(3)]
        visits = []
        for stay in stays:
            begun.clear()
            visits.append(asyncio.create_task(visit(stay)))
            await asyncio.wait_for(begun.wait(), 5)
        assert statuses == [200, 200, 503]
        await asyncio.wait_for(visits[2], 5)
        assert guard.streams == 2
        stays[0].set()
        await asyncio.wait_for(visits[0], 5)
        assert guard.streams == 1
        begun.clear()
        stays[2].clear()
        visits[2] = asyncio.create_task(visit(stays[2]))
        await asyncio.wait_for(begun.wait(), 5)
        assert statuses[3:] == [200]
        for stay in stays:
            stay.set()
        await asyncio.wait_for(asyncio.gather(*visits), 5)
        assert guard.streams == 0

    asyncio.run(run())


def fetched(site: str, mode: str, to: str) -> list[tuple[str, str]]:
    return [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", to)]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("mode", "to"), [("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("no-cors", "script")]
)
def test_other_sites_cannot_embed_pages_nor_hold_streams(site: str, mode: str, to: str) -> None:
    answered = ask(APP, "/events", headers=fetched(site, mode, to))
    assert answered.status == 403
    assert answered.header("set-cookie") is None


def test_a_link_from_elsewhere_is_opened_once_more_and_keeps_the_session() -> None:
    answered = ask(APP, '/events?q="><script>', headers=fetched("cross-site", "navigate", "document"))
    assert answered.status == 200
    assert not reached(answered)
    assert answered.header("set-cookie") is None
    assert 'content="0;url=/events?q=&quot;&gt;&lt;script&gt;"' in answered.text
    assert ask(APP, headers=fetched("same-origin", "navigate", "document")).header("set-cookie")
    assert reached(ask(APP, headers=fetched("same-site", "navigate", "document")))
    assert reached(ask(APP, headers=fetched("none", "navigate", "document")))


TOKEN = "correct-horse-ü"
KEY = "bakeoff-key-8000"


def key_of(answered: Answered) -> str:
    (cookie,) = (value for name, value in answered.headers if name == "set-cookie" and value.startswith(KEY))
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
    return cookie.partition(";")[0]


def test_without_the_token_nothing_but_static_files_is_answered() -> None:
    app = guarded(TOKEN)
    for target in ("/", "/absent", "/events", "/sign-inn", "/static", "/x/static/site.css"):
        answered = ask(app, target)
        assert answered.status == 401, target
        assert 'name="token"' in answered.text
    assert ask(app, method="HEAD").status == 401
    assert post(app).status == 401
    assert reached(ask(app, "/static/site.css"))
    assert ask(app, "/sign-in").status == 200


def test_the_token_in_the_address_signs_in_once_and_leaves_the_address() -> None:
    app = guarded(TOKEN)
    answered = ask(app, f"/?q=a%26b&token={quote(TOKEN)}")
    assert (answered.status, answered.header("location")) == (303, "/?q=a%26b")
    assert TOKEN not in str(answered.headers)
    assert reached(ask(app, headers=[("cookie", key_of(answered))]))
    assert reached(post(app, cookie=f"{COOKIE}={SESSION}; {key_of(answered)}"))


@pytest.mark.parametrize("path", ["/%2Frebound.example", "/%2f%2Frebound.example", "/%5Crebound.example"])
def test_signing_in_does_not_lead_elsewhere(path: str) -> None:
    answered = ask(guarded(TOKEN), f"{path}?token={quote(TOKEN)}")
    assert (answered.status, answered.header("location")) == (303, path)


def test_the_form_signs_in() -> None:
    app = guarded(TOKEN)
    answered = post(app, "/sign-in", fields={"token": TOKEN})
    assert (answered.status, answered.header("location")) == (303, "/")
    assert reached(ask(app, headers=[("cookie", key_of(answered))]))


def test_signing_in_from_another_site_is_refused() -> None:
    app = guarded(TOKEN)
    assert post(app, "/sign-in", fields={"token": TOKEN}, headers=[("origin", "http://rebound.example")]).status == 403
    assert post(app, "/sign-in", fields={"token": TOKEN}, csrf=None).status == 403


@pytest.mark.parametrize("raw", [TOKEN, "", "0" * 64, f'"{TOKEN}"'])
def test_the_raw_token_is_no_cookie(raw: str) -> None:
    cookie = [("cookie", f"{KEY}={raw}")]
    assert ask(guarded(TOKEN), headers=cookie).status == 401


def test_a_cookie_of_another_site_or_token_is_refused() -> None:
    for other in (Place(token="other"), Place(token=TOKEN, secret=b"t" * 32)):
        guard = Starlette(routes=[Route("/", echo)], middleware=[Middleware(Guard, site=other)])
        key = key_of(ask(guard, "/?token=" + quote(other.token or "")))
        assert ask(guarded(TOKEN), headers=[("cookie", key)]).status == 401


def test_wrong_tokens_are_limited_by_address_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    app = guarded(TOKEN)
    now = [0.0]
    monkeypatch.setattr(safety.time, "monotonic", lambda: now[0])
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x"):
        assert ask(app, "/?token=" + quote(wrong)).status == 403
    assert post(app, "/sign-in", fields={"token": "wrong"}).status == 403
    right = "/?token=" + quote(TOKEN)
    assert ask(app, right).status == 429
    assert post(app, "/sign-in", fields={"token": TOKEN}).status == 429
    signed_in = ask(app, right, client="10.0.0.7")
    assert signed_in.status == 303
    assert reached(ask(app, headers=[("cookie", key_of(signed_in))]))
    now[0] = safety.WRONG_TOKEN_SECONDS + 1
    assert ask(app, right).status == 303


def test_addresses_that_tried_do_not_pile_up() -> None:
    guard = Guard(guarded(), Place(token=TOKEN))
    for number in range(1100):
        ask(guard, "/?token=wrong", client=str(number))
    assert len(guard.wrong) == 1000


def test_web_sockets_are_closed() -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(guarded(), Place())({"type": "websocket", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
