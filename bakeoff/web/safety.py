"""What stands before every page of the site: the checks that a request passes, and the headers that an answer carries."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
import traceback
from collections import OrderedDict
from html import escape
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bakeoff.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from bakeoff.web.site import Site

BODY = 2**20
FIELDS = 1000
TARGET = 8 * 2**10
HEAD = 32 * 2**10
STREAMS = 64
WRONG_TOKENS = 5
WRONG_TOKEN_SECONDS = 60.0
_ADDRESSES = 1000

_HEADERS = {
    # Referrer-Policy is not no-referrer, with which browsers send `Origin: null` along with the site's own forms.
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_SESSION = re.compile(r"[A-Za-z0-9_-]{43}")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_FIRST_OF_URL = re.compile(r"(https?)://([^/?#]*)")
_SIGN_IN = "/sign-in"


def csrf_token(secret: bytes, session: str) -> str:
    """What a form must carry in its field `csrf`: 64 hexadecimal digits that only this site can make for a session."""
    return hmac.new(secret, b"csrf " + session.encode(), "sha256").hexdigest()


class Guard:
    """ASGI middleware that lets through what a browser sends from the site's own pages, and refuses the rest.

    Refused with a page of one sentence: a Host that is neither one of `site.hosts` nor the address that the connection
    came in at (DNS rebinding), methods other than GET, HEAD and POST, a POST that another site's page sent or whose field
    `csrf` is not `csrf_token(site.secret, session)`, bodies above 1 MiB, more than 1000 fields, long URLs and headers,
    what another site's page embeds, and, where `site.token` is set, everything but /static/ without the cookie that
    signing in gives. At most 64 server-sent event streams are open at once.

    The app finds the form's token in `scope["csrf"]`, and the body of a form as if nobody had read it. Where it raises a
    UsageError without having answered, the visitor gets a page with its sentence and status 400; anything else that it
    raises is printed to stderr, and the visitor gets status 500 without a word of it.
    """

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app = app
        self.site = site
        self.streams = 0
        self.wrong: OrderedDict[str, list[float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(self, scope, send)
        try:
            response = await self._checked(scope, receive, answer)
            if response is not None:
                await response(scope, receive, answer)
        except _Gone:
            pass
        except _Refused as refused:
            await _page(refused.status, refused.title, refused.sentence)(scope, receive, answer)
        except Exception as error:
            if isinstance(error, UsageError) and not answer.started:
                await _page(400, "Not understood", str(error))(scope, receive, answer)
            else:
                traceback.print_exc()
                answer.failed = True
        finally:
            self.streams -= answer.stream
        if answer.failed and not answer.started:
            answer.over = False
            sentence = "Something went wrong here; the terminal in which the site runs says what."
            await _page(500, "An error of the site", sentence)(scope, receive, answer)

    async def _checked(self, scope: Scope, receive: Receive, answer: _Answer) -> Response | None:
        """Answer by the app, or return what is answered in its place."""
        headers = Headers(scope=scope)
        own = self._own_origin(scope, headers)
        _check_size(scope, headers)
        cookies = cookie_parser("; ".join(headers.getlist("cookie")))
        port = (scope.get("server") or ("", 0))[1]
        session = cookies.get(f"bakeoff-session-{port}", "")
        if scope["method"] != "POST" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            if (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document"):
                raise _Refused(403, "Refused", "A page of another site asked for this; open it from this site instead.")
            if not session and headers["sec-fetch-site"] == "cross-site":
                # A link from elsewhere brings no SameSite=Strict cookie: once more, from a page of our own.
                return _once_more(scope)
        static = scope["path"].startswith("/static/")
        if not _SESSION.fullmatch(session):
            session = secrets.token_urlsafe(32)
            if scope["method"] != "POST" and not static:
                # Given with the answer to a form, it would let another site end the session of forms that are open.
                answer.cookies[f"bakeoff-session-{port}"] = session
        scope["csrf"] = csrf_token(self.site.secret, session)
        if static:
            answer.cache = "no-cache"
        key = None if self.site.token is None or static else self._key(self.site.token)
        if key is not None:
            answer.key = (f"bakeoff-key-{port}", key)
            known = hmac.compare_digest(cookies.get(answer.key[0], "").encode(), key.encode())
            if (response := self._at_the_door(scope, answer, known)) is not None:
                return response
        if scope["method"] == "POST":
            if not _same_origin(headers, own):
                sentence = "This form was not sent by a page of this site; open the page here first."
                raise _Refused(403, "Refused", sentence)
            body = await _form(headers, receive)
            fields = _fields(body)
            if not hmac.compare_digest("\n".join(fields.get("csrf", [])).encode(), scope["csrf"].encode()):
                sentence = "This form is out of date; open its page again, with cookies allowed, and send it once more."
                raise _Refused(403, "Refused", sentence)
            if key is not None and scope["path"] == _SIGN_IN:
                return self._try(scope, answer, fields.get("token", [""])[0], "/")
            receive = _replay(body, receive)
        # Whatever answers GET answers HEAD; the server leaves the body out.
        await self.app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, receive, answer)
        return None

    def _at_the_door(self, scope: Scope, answer: _Answer, known: bool) -> Response | None:
        """What a visitor to a site with a token gets in place of a page; None for one who is known, or signs in by a form."""
        if scope["method"] != "POST":
            given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            if tokens := [value for name, value in given if name == "token"]:
                rest = urlencode([(name, value) for name, value in given if name != "token"])
                return self._try(scope, answer, tokens[0], _target(scope) + (f"?{rest}" if rest else ""))
            if scope["path"] == _SIGN_IN:
                return _sign_in(scope, 200)
        return None if known or scope["path"] == _SIGN_IN else _sign_in(scope, 401)

    def _try(self, scope: Scope, answer: _Answer, given: str, target: str) -> Response:
        """Let in whoever gives the token; wrong ones are counted by the address that they come from."""
        address, now = (scope.get("client") or ("",))[0], time.monotonic()
        recent = [when for when in self.wrong.get(address, []) if now - when < WRONG_TOKEN_SECONDS]
        if len(recent) >= WRONG_TOKENS:
            raise _Refused(429, "Too many tries", "Too many wrong tokens came from your address; wait a minute.")
        name, key = answer.key
        if hmac.compare_digest(self._key(given), key):
            answer.cookies[name] = key
            return RedirectResponse(target, 303)
        self.wrong[address] = [*recent, now]
        self.wrong.move_to_end(address)
        if len(self.wrong) > _ADDRESSES:
            self.wrong.popitem(last=False)
        return _sign_in(scope, 403, "That token is not this site's.")

    def _own_origin(self, scope: Scope, headers: Headers) -> _Origin:
        """The origin of the site's pages, as this visitor's browser sees it."""
        hosts = headers.getlist("host")
        own = _origin(scope["scheme"], hosts[0]) if len(hosts) == 1 else None
        if own is None:
            raise _Refused(400, "Not understood", "A request must name one host: the site's own.")
        # An address is safe: what is rebound is a name.
        if own.host not in self.site.hosts and own.host != _address((scope.get("server") or ("",))[0]):
            raise _Refused(421, "Another host", "This site does not go by that name; use the address that it printed.")
        return own

    def _key(self, token: str) -> str:
        """The cookie of a visitor who has signed in, from which the token cannot be had."""
        return hmac.new(self.site.secret, b"key " + token.encode(), "sha256").hexdigest()


class _Refused(Exception):
    """A request that does not reach the app, and the page that it gets."""

    def __init__(self, status: int, title: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.title, self.sentence = status, title, sentence


class _Gone(Exception):
    """The visitor left before the request was whole."""


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Answer:
    """Where an answer is sent: it adds headers and cookies, counts streams of events, and keeps back the app's own status 500.

    `key`: name and value of the cookie of whoever has signed in.
    """

    def __init__(self, guard: Guard, scope: Scope, send: Send) -> None:
        self.guard, self.scope, self.send = guard, scope, send
        self.cookies: dict[str, str] = {}
        self.cache = "no-store"
        self.started = False
        self.failed = False
        self.stream = False
        self.over = False
        self.key = ("", "")

    async def __call__(self, message: Message) -> None:
        if self.over:
            return
        if message["type"] == "http.response.start":
            if message["status"] == 500 and not self.failed:
                self.failed = self.over = True
                return
            self.started = True
            headers = Headers(raw=list(message["headers"]))
            if headers.get("content-type", "").startswith("text/event-stream"):
                if self.guard.streams >= STREAMS:
                    sentence = "Too many pages with live progress are open; close some of them."
                    await _page(503, "Too many pages", sentence)(self.scope, _nothing, self)
                    self.over = True
                    return
                self.guard.streams += 1
                self.stream = True
            added = {"cache-control": self.cache, **_HEADERS}
            kept = [pair for pair in message["headers"] if pair[0].lower().decode("latin-1") not in _HEADERS]
            if "cache-control" in headers:
                del added["cache-control"]
            for name, value in self.cookies.items():
                kept.append((b"set-cookie", f"{name}={value}; HttpOnly; SameSite=Strict; Path=/".encode()))
            message = {**message, "headers": [*kept, *((k.encode(), v.encode()) for k, v in added.items())]}
        await self.send(message)


def _origin(scheme: str, authority: str) -> _Origin | None:
    """Scheme, host and port in their one form; None where the host is not well formed."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    host = _address(found[1]) if found[1] else found[2].lower().removesuffix(".")
    return _Origin(scheme, host, int(found[3] or (443 if scheme == "https" else 80))) if host else None


def _address(text: str) -> str:
    """An IP address in its one form; empty where the text is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _same_origin(headers: Headers, own: _Origin) -> bool:
    """Whether a page of the site itself sent the request: by Origin or, without it, Sec-Fetch-Site or Referer."""
    if origins := headers.getlist("origin"):
        return (
            len(origins) == 1
            and (found := _FIRST_OF_URL.fullmatch(origins[0])) is not None
            and _origin(*found.groups()) == own
        )
    if "sec-fetch-site" in headers:
        return headers["sec-fetch-site"] == "same-origin"
    found = _FIRST_OF_URL.match(headers.get("referer", ""))
    return found is not None and _origin(*found.groups()) == own


def _check_size(scope: Scope, headers: Headers) -> None:
    """Method, target and sizes, before anything is read."""
    if scope["method"] not in ("GET", "HEAD", "POST"):
        raise _Refused(405, "Not offered", "The site answers GET, HEAD and POST alone.")
    target = _target(scope)
    if not target.startswith("/") or target.startswith(("//", "/\\")):
        raise _Refused(
            400, "Not understood", "A request must name a page of this site by a path that begins with one /."
        )
    if len(target) + len(scope["query_string"]) > TARGET:
        raise _Refused(414, "Too long", f"An address may be {TARGET:,} bytes long; shorten what is asked for.")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD:
        raise _Refused(
            431, "Too long", f"The headers of a request may be {HEAD:,} bytes long; clear the cookies of this site."
        )
    length = headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,20}", length):
        raise _Refused(400, "Not understood", "A request must give its length as a number of bytes.")
    if int(length) > BODY:
        raise _Refused(413, "Too large", _TOO_LARGE)
    if scope["method"] != "POST" and (int(length) or "transfer-encoding" in headers):
        raise _Refused(400, "Not understood", "Only a form carries a body.")


def _target(scope: Scope) -> str:
    """The path as it was sent, percent-encoded: /%2Fother.example must not become //other.example."""
    return str(scope["raw_path"], "latin-1") if scope.get("raw_path") else quote(scope["path"])


_TOO_LARGE = f"A form may be {BODY:,} bytes large; put data into a file in the site's folder, and name that."


async def _form(headers: Headers, receive: Receive) -> bytes:
    """The body of a form, of which no more than the limit is ever held."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise _Refused(415, "Not understood", "Forms are sent as application/x-www-form-urlencoded.")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        if len(body) + len(message.get("body", b"")) > BODY:
            raise _Refused(413, "Too large", _TOO_LARGE)
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _fields(body: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS)
    except UnicodeDecodeError:
        raise _Refused(400, "Not understood", "The fields of a form are percent-encoded.") from None
    except ValueError:
        raise _Refused(413, "Too large", f"A form may have {FIELDS:,} fields; send fewer.") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then waits for the visitor to leave."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _once_more(scope: Scope) -> HTMLResponse:
    """A page that opens the same address anew, as a page of this site."""
    query = scope["query_string"].decode("latin-1")
    target = escape(_target(scope) + (f"?{query}" if query else ""))
    refresh = f'<meta http-equiv="refresh" content="0;url={target}">'
    return _page(200, "Opening", "The page opens in a moment.", f'<p><a href="{target}">Open it now</a></p>', refresh)


def _sign_in(
    scope: Scope, status: int, sentence: str = "This site needs the token that it printed when it began."
) -> HTMLResponse:
    form = (
        f'<form method="post" action="{_SIGN_IN}"><input type="hidden" name="csrf" value="{scope["csrf"]}">'
        '<p><label for="token">Token</label> <input id="token" name="token" type="password" required '
        'autocomplete="current-password"></p><p><button type="submit">Sign in</button></p></form>'
    )
    return _page(status, "Sign in", sentence, form)


def _page(status: int, title: str, sentence: str, more: str = "", head: str = "") -> HTMLResponse:
    """A small page; `more` and `head` are markup, the rest is text."""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{head}<title>{escape(title)} · bakeoff</title><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="/static/style.css">'
        f'<link rel="stylesheet" href="/static/site.css"></head><body><main><h1>{escape(title)}</h1>'
        f"<p>{escape(sentence)}</p>{more}</main></body></html>",
        status,
    )
