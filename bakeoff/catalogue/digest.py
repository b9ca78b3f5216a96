"""What is new in the catalogue since a day, to read or to send as a mail over TLS."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import smtplib
import socket
import ssl
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from html import escape
from typing import Any

from bakeoff.catalogue.papers import Paper
from bakeoff.errors import BakeoffError, UsageError

TIMEOUT = 30.0
"""Seconds that the mail server may take for each answer."""

_TLS_AT_ONCE = 465


@dataclass(frozen=True)
class Digest:
    """The papers that came into the catalogue on `since` or later, and the verdicts of studies that ran then."""

    since: date
    papers: tuple[Paper, ...]
    verdicts: tuple[Mapping[str, Any], ...]

    def __bool__(self) -> bool:
        return bool(self.papers or self.verdicts)

    @property
    def subject(self) -> str:
        """One line: how much is new, and since when."""
        added, judged = _count(len(self.papers), "paper"), _count(len(self.verdicts), "claim")
        return f"bakeoff: {added} added, {judged} judged since {self.since}"

    @property
    def empty(self) -> str:
        """What is said in place of a digest with nothing in it."""
        return f"Nothing was added to the catalogue and no claim was judged since {self.since}."

    def as_dict(self) -> dict[str, Any]:
        """The digest as JSON values."""
        papers = [
            {"slug": p.slug, "title": p.title, "year": p.year, "arxiv": p.arxiv, "contest": p.contest, "claim": p.claim,
             "added": p.added.isoformat()}
            for p in self.papers
        ]  # fmt: skip
        verdicts = [
            {"slug": v["slug"], "claim": v["claim"], "verdict": v["verdict"], "scale": v["scale"], "seeds": len(v["seeds"]),
             "date": v["date"]}
            for v in self.verdicts
        ]  # fmt: skip
        return {"since": self.since.isoformat(), "papers": papers, "verdicts": verdicts}

    def text(self) -> str:
        """The digest as plain text."""
        if not self:
            return self.empty
        lines = []
        for heading, entries in self._parts():
            lines += [heading, ""]
            for title, about, claim in entries:
                lines += [*textwrap.wrap(title, 76), f"  {about}", *textwrap.wrap(claim, 74, initial_indent="  ",
                          subsequent_indent="  "), ""]  # fmt: skip
        return "\n".join(lines).rstrip() + "\n"

    def html(self) -> str:
        """The digest as one HTML page without images, scripts and styles from elsewhere."""
        body = "" if self else f"<p>{escape(self.empty)}</p>"
        for heading, entries in self._parts():
            items = "".join(
                f"<li><p><strong>{escape(title)}</strong><br>{escape(about)}</p><p>{escape(claim)}</p></li>"
                for title, about, claim in entries
            )
            body += f"<h2>{escape(heading)}</h2><ul>{items}</ul>"
        return (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.subject)}</title></head>'
            f"<body>{body}</body></html>"
        )

    def _parts(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """Each part that is not empty: its heading, and title, circumstances and claim of every entry."""
        verdicts = [
            (
                f"{v['slug']}: {v['verdict']}",
                f"scale {v['scale']}, {_count(len(v['seeds']), 'seed')}, {v['date']}",
                v["claim"],
            )
            for v in self.verdicts
        ]
        papers = [
            (
                f"{p.title} ({p.year})",
                f"{p.contest}, bakeoff show {p.slug}" + (f", https://arxiv.org/abs/{p.arxiv}" if p.arxiv else ""),
                p.claim,
            )
            for p in self.papers
        ]
        headed = (
            (f"Judged since {self.since}: {_count(len(verdicts), 'claim')}", verdicts),
            (f"Added since {self.since}: {_count(len(papers), 'paper')}", papers),
        )
        return [(heading, entries) for heading, entries in headed if entries]


def digest(papers: Iterable[Paper], verdicts: Iterable[Mapping[str, Any]], since: date) -> Digest:
    """What came since a day, that day included: papers by their date `added`, verdicts by the day on which the study ran."""
    return Digest(
        since,
        tuple(sorted((p for p in papers if p.added >= since), key=lambda p: (p.added, p.contest, p.title))),
        tuple(
            sorted(
                (v for v in verdicts if date.fromisoformat(v["date"]) >= since), key=lambda v: (v["date"], v["slug"])
            )
        ),
    )


def send(found: Digest, mail: str, smtp: str, context: ssl.SSLContext | None = None) -> str:
    """Send a digest to the address `mail` by the server `smtp`, and return the sentence that says so.

    An empty digest is not sent: who asks daily wants no mail without news. At port 465 the server speaks TLS at once; at any
    other it must offer STARTTLS. Its certificate must be valid for its name. BAKEOFF_SMTP_USER and BAKEOFF_SMTP_PASSWORD
    log in, once TLS stands; BAKEOFF_MAIL_FROM is the sender, by default the user where that is an address.

    Args:
        smtp: HOST:PORT, or [ADDRESS]:PORT for IPv6.
        context: what certificates are checked against; by default the system's, or those that SSL_CERT_FILE names.

    Raises:
        UsageError: an address or server that is malformed; a sender or password that is missing.
        BakeoffError: the server cannot be reached, is not who it should be, or refuses user, sender, recipient or message.
    """
    host, port = _server(smtp)
    user, password = os.environ.get("BAKEOFF_SMTP_USER", ""), os.environ.get("BAKEOFF_SMTP_PASSWORD", "")
    if bool(user) != bool(password):
        raise UsageError("BAKEOFF_SMTP_USER and BAKEOFF_SMTP_PASSWORD log in together: set both, or neither.")
    if not (user + password).isascii():
        raise UsageError("BAKEOFF_SMTP_USER and BAKEOFF_SMTP_PASSWORD must be ASCII, as SMTP sends nothing else.")
    sender = os.environ.get("BAKEOFF_MAIL_FROM") or user
    if not sender:
        raise UsageError("The mail needs a sender: set BAKEOFF_MAIL_FROM to an address.")
    message = _message(found, _address(sender, "sender (BAKEOFF_MAIL_FROM)"), _address(mail, "recipient (--mail)"))
    if not found:
        return f"{found.empty} No mail was sent."
    context = context or ssl.create_default_context()
    at_once = port == _TLS_AT_ONCE
    connection: smtplib.SMTP | None = None
    try:
        # Named so, the machine's own name is neither looked up nor told.
        own_name = "[127.0.0.1]"
        if at_once:
            connection = smtplib.SMTP_SSL(host, port, own_name, timeout=TIMEOUT, context=context)
        else:
            connection = smtplib.SMTP(host, port, own_name, timeout=TIMEOUT)
        connection.ehlo_or_helo_if_needed()
        if not at_once:
            if not connection.has_extn("starttls"):
                raise BakeoffError(
                    f"{smtp} offers no STARTTLS, and mail is not sent in the clear: name a server that does, or its port {_TLS_AT_ONCE}."
                )
            connection.starttls(context=context)
            connection.ehlo()
        if user:
            connection.login(user, password)
        connection.send_message(message)
        with contextlib.suppress(OSError, smtplib.SMTPException):
            connection.quit()
    except (OSError, smtplib.SMTPException) as error:
        raise BakeoffError(_explained(error, smtp, mail, sender, at_once)) from None
    finally:
        if connection is not None:
            connection.close()
    return f"The digest was sent to {mail}: {found.subject.removeprefix('bakeoff: ')}."


def _message(found: Digest, sender: str, recipient: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = sender, recipient, found.subject
    message["Date"] = formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(found.text(), cte="quoted-printable")
    message.add_alternative(found.html(), subtype="html", cte="quoted-printable")
    return message


def _server(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[\w.-]+)):(?P<port>[0-9]{1,5})", text)
    if found and 0 < int(found["port"]) < 65536:
        with contextlib.suppress(ValueError):
            if found["host"]:
                found["host"].encode("idna")  # UnicodeError, a ValueError, for labels that are empty or too long
            return found["host"] or str(ipaddress.IPv6Address(found["v6"])), int(found["port"])
    raise UsageError(f"{text!r} is no mail server: write HOST:PORT, such as mail.example.org:587, or [ADDRESS]:PORT.")


def _address(text: str, what: str) -> str:
    if not re.fullmatch(r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]+@[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]+", text):
        raise UsageError(f"The {what} {text!r} is no mail address: write one, such as name@example.org.")
    return text


def _explained(error: Exception, smtp: str, mail: str, sender: str, at_once: bool) -> str:
    """One sentence that says why the mail was not sent, and what to do."""
    if isinstance(error, smtplib.SMTPServerDisconnected) and isinstance(error.__context__, TimeoutError):
        error = error.__context__  # smtplib tells it so once it is connected
    match error:
        case socket.gaierror():
            return f"The mail server {smtp} has no address ({error.strerror}): check its name."
        case ConnectionRefusedError():
            return f"The mail server {smtp} refuses connections: check host and port."
        case ssl.SSLCertVerificationError():
            return (
                f"The certificate of {smtp} is not valid ({error.verify_message}): nothing was sent; check the server's name, "
                "or let SSL_CERT_FILE name the authority that signed it."
            )
        case ssl.SSLError():
            hint = "such as 587" if at_once else f"which is {_TLS_AT_ONCE} where TLS begins at once"
            return f"{smtp} does not speak TLS as it should ({error.reason or error}): check the port, {hint}."
        case TimeoutError():
            return f"The mail server {smtp} did not answer within {TIMEOUT:g} seconds: check host and port."
        case smtplib.SMTPAuthenticationError():
            return (
                f"{smtp} does not accept user and password ({_words(error.smtp_code, error.smtp_error)}): check "
                "BAKEOFF_SMTP_USER and BAKEOFF_SMTP_PASSWORD."
            )
        case smtplib.SMTPRecipientsRefused():
            reply = next(iter(error.recipients.values()))
            return f"{smtp} refuses the recipient {mail} ({_words(*reply)}): check --mail."
        case smtplib.SMTPSenderRefused():
            told = _words(error.smtp_code, error.smtp_error)
            return (
                f"{smtp} refuses the sender {sender} ({told}): check BAKEOFF_MAIL_FROM, and whether a user must log in."
            )
        case smtplib.SMTPServerDisconnected():
            return f"The mail server {smtp} ended the connection: check the port, or try again later."
        case smtplib.SMTPResponseException():
            return f"{smtp} does not take the mail ({_words(error.smtp_code, error.smtp_error)}): try again or name another."
        case smtplib.SMTPException():
            return f"{smtp} cannot do what the mail needs ({str(error).rstrip('.')}): name another server."
        case _:
            return f"The mail server {smtp} cannot be reached ({error}): check host, port and network."


def _words(code: int, reply: bytes | str) -> str:
    """A server's answer, without what a terminal would obey."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    return " ".join("".join(c if c.isprintable() else " " for c in f"{code} {text}").split())[:200]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
