"""Alerts by mail against a real SMTP server."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from infra.settings import Settings
from tests.connectors.outward.conftest import Outward, until


class Mailbox:
    """Keeps what it accepts; `replies` are given first, one a mail: a reply, or "lost" after accepting it."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.replies: list[str] = []
        self.tried = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        self.tried += 1
        reply = self.replies.pop(0) if self.replies else "250 OK"
        if reply in ("lost", "250 OK"):
            found = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(found, EmailMessage)
            self.mails.append(found)
        if reply == "lost":
            server.transport.close()
        return reply if reply != "lost" else "250 OK"


@pytest.fixture
def mailbox(outward: Outward) -> Iterator[Mailbox]:
    """A mail server that runs, and is the one of the settings."""
    handler = Mailbox()
    controller = Controller(handler, hostname="127.0.0.1", port=0)
    # Port 0: the controller connects to itself once to see that it runs, so it must know its port.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        controller.port = free.getsockname()[1]
    controller.start()
    outward.settings = Settings(
        {
            **outward.settings.environ,
            "MILLRACE_SMTP_URL": f"smtp://127.0.0.1:{controller.port}",
            "MILLRACE_SMTP_FROM": "alerts@millrace.example",
        }
    )
    yield handler
    controller.stop()


def test_high_risk_is_mailed_and_nothing_else(outward: Outward, mailbox: Mailbox) -> None:
    """What waits comes in one mail with risk, reasons and ids; what is below the risk does not come."""
    outward.add("mailto:risk@example.com", risk_min=0.8, decisions=["REVIEW", "DECLINE"])
    high = outward.decide(["m1", "m2"], decision="DECLINE", risk=0.9, reasons=["Third use abroad"])
    low = outward.decide(["m1"], decision="REVIEW", risk=0.7)
    with outward.delivering():
        until(lambda: outward.ask("SELECT sum(pending) FROM outward_lanes") == [(0,)])
    (mail,) = mailbox.mails
    assert mail["To"] == "risk@example.com" and mail["From"] == "alerts@millrace.example"
    assert mail["Subject"] == f"DECLINE, risk 0.90: {high[0]} and 1 more"
    text = mail.get_content()
    assert all(event in text for event in high) and low[0] not in text and "Third use abroad" in text


def test_a_mail_whose_answer_was_lost_comes_again_under_its_id(outward: Outward, mailbox: Mailbox) -> None:
    """Refused it is sent later; accepted with a lost answer it is repeated, the same under the same id."""
    outward.add("mailto:risk@example.com")
    mailbox.replies = ["451 later", "lost"]
    first = outward.decide(["m1"])
    with outward.delivering():
        until(lambda: mailbox.tried >= 2)
        later = outward.decide(["m1"])
        until(lambda: outward.ask("SELECT sum(pending) FROM outward_lanes") == [(0,)])
    a, b, c = mailbox.mails
    assert a["Message-ID"] == b["Message-ID"] != c["Message-ID"]
    assert a.get_content() == b.get_content() and first[0] in a.get_content()
    assert later[0] in c.get_content() and later[0] not in b.get_content()


def test_ids_cannot_write_headers(outward: Outward, mailbox: Mailbox) -> None:
    """An event id with a line break is one line of the subject, not a header more."""
    outward.add("mailto:risk@example.com")
    outward.decide(["m1"], event_id="x\r\nBcc: eve@example.com")
    with outward.delivering():
        until(lambda: len(mailbox.mails) == 1)
    assert mailbox.mails[0]["Bcc"] is None and "eve@example.com" in mailbox.mails[0]["Subject"]


def test_without_a_mail_server_no_mailbox_is_added(outward: Outward) -> None:
    """Whoever asks for alerts learns at once that none could be sent."""
    with pytest.raises(ValueError, match="MILLRACE_SMTP_URL"):
        outward.add("mailto:risk@example.com")
