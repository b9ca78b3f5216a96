"""The digest: what it holds, how it reads, and that it is sent over TLS or not at all, by a real server on this machine."""

from __future__ import annotations

import datetime
import email
import html
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from bakeoff import study
from bakeoff.catalogue import digest as digesting
from bakeoff.catalogue.digest import Digest, digest, send
from bakeoff.catalogue.papers import Paper, papers
from bakeoff.cli import main
from bakeoff.errors import BakeoffError, UsageError

SINCE = datetime.date(2026, 3, 10)
USER, PASSWORD, RECIPIENT = "writer@example.org", "correct horse", "reader@example.org"


def paper(slug: str, added: datetime.date, **fields: Any) -> Paper:
    given = {
        "title": f"About {slug}",
        "year": 2025,
        "contest": "tune",
        "kind": "method",
        "claim": f"{slug} helps by 3%.",
    }
    return Paper(slug, **{**given, **fields}, tags=("forgetting",), implemented_by=(), added=added)  # type: ignore[arg-type]


def verdict(slug: str, day: str, outcome: str = "holds") -> dict[str, Any]:
    claim = f"{slug} gains more than it costs."
    return {"slug": slug, "claim": claim, "verdict": outcome, "scale": "laptop", "seeds": [0, 1, 2], "date": day}


PAPERS = [
    paper("older", SINCE - datetime.timedelta(1)),
    paper("same-day", SINCE, arxiv="2404.18466"),
    paper("naïve", SINCE + datetime.timedelta(3), title="Größe <script>alert(1)</script> & Co", claim="It is > 2 & < 3, ’quoted’."),
]  # fmt: skip
VERDICTS = [verdict("before", "2026-03-09"), verdict("later", "2026-03-12", "fails"), verdict("on", "2026-03-10")]
FOUND = digest(PAPERS, VERDICTS, SINCE)
EMPTY = digest(PAPERS, VERDICTS, datetime.date(2027, 1, 1))


def test_a_digest_holds_what_came_on_that_day_or_later() -> None:
    assert [p.slug for p in FOUND.papers] == ["same-day", "naïve"]
    assert [v["slug"] for v in FOUND.verdicts] == ["on", "later"]
    assert FOUND.subject == "bakeoff: 2 papers added, 2 claims judged since 2026-03-10"
    assert digest(PAPERS[:2], [], SINCE).subject == "bakeoff: 1 paper added, 0 claims judged since 2026-03-10"


def test_text_and_html_say_the_same_and_html_escapes() -> None:
    text, page = FOUND.text(), FOUND.html()
    assert "<script>" in text
    assert "<script>" not in page
    assert not re.search(r"<(img|script|link|iframe|style)|src=|url\(", page)
    for said in ("About same-day (2025)", "tune, bakeoff show same-day, https://arxiv.org/abs/2404.18466",
                 "later: fails", "scale laptop, 3 seeds, 2026-03-12", "later gains more than it costs.",
                 "It is > 2 & < 3, ’quoted’.", "Judged since 2026-03-10: 2 claims"):  # fmt: skip
        assert said in text
        assert said in html.unescape(page)
    assert max(map(len, text.splitlines())) < 80
    assert not EMPTY
    assert EMPTY.text() == "Nothing was added to the catalogue and no claim was judged since 2027-01-01."
    assert EMPTY.text() in EMPTY.html()


def test_the_catalogue_and_the_verdicts_on_record_make_a_digest() -> None:
    found = digest(papers().values(), study.recorded(), datetime.date(2000, 1, 1))
    assert len(found.papers) == len(papers())
    told = json.loads(json.dumps(found.as_dict()))
    assert {v["slug"] for v in told["verdicts"]} == {v["slug"] for v in study.recorded()}
    assert all(
        isinstance(v["seeds"], int) and v["verdict"] in ("holds", "fails", "undecided") for v in told["verdicts"]
    )
    page = found.html()
    assert all(html.escape(p.claim) in page for p in found.papers)


class Mailbox:
    """A mail server's handler: what it received, and whom it let in."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.logins: list[tuple[str, str, bool]] = []
        self.refuse = ""

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refuse:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=SMTP_POLICY)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        return "250 OK"

    def authenticator(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any
    ) -> AuthResult:
        assert isinstance(given, LoginPassword)
        user, password = given.login.decode(), given.password.decode()
        self.logins.append((user, password, server.transport.get_extra_info("ssl_object") is not None))
        return AuthResult(success=(user, password) == (USER, PASSWORD), handled=False)


Serve = Callable[..., tuple[Mailbox, int]]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def serve(authority: trustme.CA) -> Iterator[Serve]:
    """Starts a server: `tls` is at_once, starttls or none; its certificate is for `name`, signed by `signer`."""
    running: list[Controller] = []

    def start(tls: str, name: str = "localhost", signer: trustme.CA | None = None) -> tuple[Mailbox, int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (signer or authority).issue_cert(name).configure_cert(context)
        box, port = Mailbox(), free_port()
        by_tls: dict[str, dict[str, Any]] = {
            "at_once": {"ssl_context": context, "auth_require_tls": False},
            "starttls": {"tls_context": context, "require_starttls": True},
            "none": {"auth_require_tls": False},
        }
        running.append(
            Controller(box, hostname="127.0.0.1", port=port, server_hostname="mail", authenticator=box.authenticator, **by_tls[tls])
        )  # fmt: skip
        running[-1].start()
        return box, port

    yield start
    for controller in running:
        controller.stop()


@pytest.fixture(autouse=True)
def _settings(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    for name, value in (("SSL_CERT_FILE", str(tmp_path / "authority.pem")), ("BAKEOFF_SMTP_USER", USER),
                        ("BAKEOFF_SMTP_PASSWORD", PASSWORD)):  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("BAKEOFF_MAIL_FROM", raising=False)


@pytest.mark.parametrize("tls", ["at_once", "starttls"])
def test_a_mail_arrives_whole_over_tls(tls: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    box, port = serve(tls)
    if tls == "at_once":
        monkeypatch.setattr(digesting, "_TLS_AT_ONCE", port)
    assert send(FOUND, RECIPIENT, f"localhost:{port}") == (
        "The digest was sent to reader@example.org: 2 papers added, 2 claims judged since 2026-03-10."
    )
    assert box.logins == [(USER, PASSWORD, True)]
    (message,) = box.mails
    assert (message["From"], message["To"], message["Subject"]) == (USER, RECIPIENT, FOUND.subject)
    assert abs(parsedate_to_datetime(message["Date"]).timestamp() - datetime.datetime.now().timestamp()) < 3600
    assert re.fullmatch(r"<[^<>@\s]+@example\.org>", message["Message-ID"])
    text, page = message.iter_parts()
    assert [part.get_content_type() for part in (text, page)] == ["text/plain", "text/html"]
    assert text.get_content().splitlines() == FOUND.text().splitlines()
    assert page.get_content().strip() == FOUND.html()


def test_without_a_user_nobody_logs_in(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    box, port = serve("starttls")
    for name in ("BAKEOFF_SMTP_USER", "BAKEOFF_SMTP_PASSWORD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("BAKEOFF_MAIL_FROM", "robot@example.net")
    send(FOUND, RECIPIENT, f"localhost:{port}")
    assert box.logins == []
    assert box.mails[0]["From"] == "robot@example.net"


def test_an_empty_digest_is_not_sent(serve: Serve) -> None:
    box, port = serve("starttls")
    assert send(EMPTY, RECIPIENT, f"localhost:{port}") == f"{EMPTY.empty} No mail was sent."
    assert (box.mails, box.logins) == ([], [])


@pytest.mark.parametrize(
    ("tls", "certificate", "told"),
    [
        ("none", "own", "offers no STARTTLS, and mail is not sent in the clear"),
        ("starttls", "foreign", r"certificate of localhost:\d+ is not valid \(unable to get local issuer certificate"),
        ("at_once", "foreign", r"certificate of localhost:\d+ is not valid"),
        ("starttls", "other name", r"is not valid \(Hostname mismatch"),
        ("at_once", "other name", r"is not valid \(Hostname mismatch"),
    ],
)
def test_without_a_trusted_server_neither_mail_nor_password_leaves(
    tls: str, certificate: str, told: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "elsewhere.example" if certificate == "other name" else "localhost"
    box, port = serve(tls, name, trustme.CA() if certificate == "foreign" else None)
    if tls == "at_once":
        monkeypatch.setattr(digesting, "_TLS_AT_ONCE", port)
    with pytest.raises(BakeoffError, match=told):
        send(FOUND, RECIPIENT, f"localhost:{port}")
    assert (box.mails, box.logins) == ([], [])


def test_a_context_says_whom_to_trust(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = trustme.CA()
    box, port = serve("starttls", "127.0.0.1", signer)
    context = ssl.create_default_context()
    signer.configure_trust(context)
    send(FOUND, RECIPIENT, f"127.0.0.1:{port}", context)
    assert len(box.mails) == 1


def test_what_the_server_refuses_is_told_in_one_sentence(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    box, port = serve("starttls")
    box.refuse = "550 no such \x1b[31mreader"
    with pytest.raises(BakeoffError, match=r"refuses the recipient reader@example\.org \(550 no such \[31mreader\)"):
        send(FOUND, RECIPIENT, f"localhost:{port}")
    monkeypatch.setenv("BAKEOFF_SMTP_PASSWORD", "wrong pony")
    with pytest.raises(BakeoffError, match="does not accept user and password") as caught:
        send(FOUND, RECIPIENT, f"localhost:{port}")
    assert "pony" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert box.mails == []


def test_a_server_that_is_not_there_or_speaks_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BakeoffError, match="refuses connections: check host and port"):
        send(FOUND, RECIPIENT, f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(digesting, "TIMEOUT", 0.1)
        with pytest.raises(BakeoffError, match=r"did not answer within 0\.1 seconds"):
            send(FOUND, RECIPIENT, f"127.0.0.1:{port}")

    def unknown(*asked: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(BakeoffError, match=r"nowhere\.example:587 has no address \(Name or service not known\)"):
        send(FOUND, RECIPIENT, "nowhere.example:587")


def test_a_server_in_the_clear_at_the_port_of_tls(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    box, port = serve("none")
    monkeypatch.setattr(digesting, "_TLS_AT_ONCE", port)
    with pytest.raises(BakeoffError, match="does not speak TLS as it should"):
        send(FOUND, RECIPIENT, f"localhost:{port}")
    assert (box.mails, box.logins) == ([], [])


@pytest.mark.parametrize("smtp", ["mail.example.org", "mail.example.org:", "mail.example.org:0", "mail.example.org:65536",
                                  "::1:587", "[::1]", "[nonsense]:587", "mail:587\n", "a b:587", ":587", "mail..example:587",
                                  "a" * 64 + ".example:587"])  # fmt: skip
def test_a_malformed_server_is_refused(smtp: str) -> None:
    with pytest.raises(UsageError, match=r"is no mail server: write HOST:PORT"):
        send(FOUND, RECIPIENT, smtp)


def test_servers_by_number_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def connect(address: tuple[str, int], *more: object) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    for smtp in ("[::1]:587", "192.0.2.7:25", "mail.example.org:465"):
        with pytest.raises(BakeoffError, match="refuses connections"):
            send(FOUND, RECIPIENT, smtp)
    assert asked == [("::1", 587), ("192.0.2.7", 25), ("mail.example.org", 465)]


@pytest.mark.parametrize("address", ["reader", "a@b@c", "reader@example.org\nBcc: all@example.org", "reader@example.org\r\n",
                                     "a@example.org,b@example.org", "Reader <reader@example.org>", "", "@example.org"])  # fmt: skip
def test_a_malformed_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="recipient .* is no mail address"):
        send(FOUND, address, "localhost:587")
    if address:
        monkeypatch.setenv("BAKEOFF_MAIL_FROM", address)
        with pytest.raises(UsageError, match="sender .* is no mail address"):
            send(FOUND, RECIPIENT, "localhost:587")


def test_what_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAKEOFF_SMTP_PASSWORD")
    with pytest.raises(UsageError, match="log in together"):
        send(FOUND, RECIPIENT, "localhost:587")
    monkeypatch.setenv("BAKEOFF_SMTP_PASSWORD", "pässword")
    with pytest.raises(UsageError, match="must be ASCII"):
        send(FOUND, RECIPIENT, "localhost:587")
    for name in ("BAKEOFF_SMTP_USER", "BAKEOFF_SMTP_PASSWORD"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="needs a sender"):
        send(FOUND, RECIPIENT, "localhost:587")


def test_a_digest_is_what_it_was_made_of() -> None:
    assert Digest(SINCE, (), ()).as_dict() == {"since": "2026-03-10", "papers": [], "verdicts": []}
    assert FOUND.as_dict()["papers"][0]["added"] == "2026-03-10"
    assert FOUND.as_dict()["verdicts"][1] == {
        "slug": "later", "claim": "later gains more than it costs.", "verdict": "fails", "scale": "laptop", "seeds": 3,
        "date": "2026-03-12",
    }  # fmt: skip


def test_the_command_sends_it(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    box, port = serve("starttls")
    with pytest.raises(SystemExit) as ended:
        main(["digest", "--since", "2026-11-01", "--mail", RECIPIENT, "--smtp", f"localhost:{port}"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"The digest was sent to {RECIPIENT}: 327 papers added")
    (message,) = box.mails
    text, _ = message.iter_parts()
    assert "hft" in text.get_content()
