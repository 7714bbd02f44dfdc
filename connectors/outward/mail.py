"""Alerts by mail: what waits for a mailbox in one message, whose id was fixed before it was first sent."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from connectors.outward.http import ANSWER_KEPT, Attempt
from infra.outward import iso

DECISIONS_MOST = 50
"""Most decisions told in one mail; the rest goes into the next."""


class MailError(ValueError):
    """A mail server's address that cannot be used."""


@dataclass(frozen=True)
class Server:
    """A mail server, from `MILLRACE_SMTP_URL`."""

    host: str
    port: int
    tls: bool
    starttls: bool
    user: str | None
    password: str | None

    @classmethod
    def of(cls, url: str) -> Server:
        """Raises `MailError`."""
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise MailError("MILLRACE_SMTP_URL is not set, or not smtp://host:port; set it to send mails")
        tls = parts.scheme == "smtps"
        return cls(
            parts.hostname,
            parts.port or (465 if tls else 25),
            tls,
            parse_qs(parts.query).get("starttls") == ["1"],
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
        )


def compose(
    sender: str, recipient: str, batch: str, rows: Sequence[Mapping[str, Any]], made_at: Any
) -> EmailMessage:
    """The mail about these decisions (rows with the ledger's fields); none: a test."""
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, recipient
    mail["Date"] = formatdate(made_at.timestamp())
    mail["Message-ID"] = f"<{batch}@{sender.rpartition('@')[2] or 'millrace'}>"
    mail["Auto-Submitted"] = "auto-generated"
    if not rows:
        mail["Subject"] = "Millrace: a test of alerts"
        mail.set_content("Alerts of high risk will be sent to this address.\n")
        return mail
    worst = max(rows, key=lambda row: float(row["risk"]))
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    mail["Subject"] = _line(f"{worst['decision']}, risk {worst['risk']:.2f}: {worst['event_id']}{more}")
    mail.set_content("\n".join(_told(row) for row in rows) + "\n")
    return mail


def _told(row: Mapping[str, Any]) -> str:
    amount = f"{row['amount_minor']} minor units of {row['currency']}"
    lines = [
        f"{row['decision']}, risk {row['risk']:.4f}: transaction {row['event_id']}",
        f"  {iso(row['occurred_at'])}, {amount}",
        f"  merchant {row['merchant_id'] or 'unknown'}, card {row['card_id']}",
        *(f"  - {reason}" for reason in row["reasons"]),
    ]
    return "\n".join(_line(line) for line in lines) + "\n"


def _line(text: str) -> str:
    """One line: ids come from outside, and a line break in a header is another header."""
    return "".join(c if c.isprintable() else " " for c in text)


def send(server: Server, mail: EmailMessage, timeout_s: float) -> Attempt:
    """Hand it to the server, waiting for its answer. Never raises what a server may cause."""
    began = time.perf_counter()
    status: int | None = None
    error, answer = None, ""
    try:
        context = ssl.create_default_context()
        connection: smtplib.SMTP = (
            smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=context)
            if server.tls
            else smtplib.SMTP(server.host, server.port, timeout=timeout_s)
        )
        try:
            if server.starttls:
                connection.starttls(context=context)
            if server.user is not None:
                connection.login(server.user, server.password or "")
            connection.send_message(mail)
            status, answer = 250, "accepted"
        finally:
            # Not quit(): it waits for an answer that says nothing about the mail.
            connection.close()
    except smtplib.SMTPRecipientsRefused as refused:
        status, text = next(iter(refused.recipients.values()), (None, b""))
        error = f"the mailbox was refused: {status} {text.decode('utf-8', 'replace')}"
    except smtplib.SMTPResponseException as refused:
        status = refused.smtp_code
        said = refused.smtp_error
        error = f"answered {status} {said.decode('utf-8', 'replace') if isinstance(said, bytes) else said}"
    except (OSError, smtplib.SMTPException) as failed:
        error = f"{type(failed).__name__}: {failed}"
    took_ms = int((time.perf_counter() - began) * 1000)
    return Attempt(status, error[:ANSWER_KEPT] if error else None, answer, took_ms)
