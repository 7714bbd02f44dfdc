"""The commands, against a real database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import build
from tests.connectors.outward.conftest import Outward


@pytest.fixture
def run(outward: Outward, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command; checks its exit code, and returns what it wrote."""
    for name, value in outward.settings.environ.items():
        if name.startswith("MILLRACE_"):
            monkeypatch.setenv(name, value)

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(build(), list(arguments))
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_an_endpoint_is_managed_by_commands(outward: Outward, run: Any) -> None:
    """Add shows keys and token once, list never; each other command does as told."""
    added = json.loads(
        run("webhooks", "add", "http://127.0.0.1:9/x", "--tenant", outward.tenant, "--decision", "decline",
            "--ed25519", "--json")
    )  # fmt: skip
    endpoint = added["endpoint_id"]
    assert [key[:6] for key in added["keys"]] == ["whsec_", "whpk_" + added["keys"][1][5]]
    (listed,) = json.loads(run("webhooks", "list", "--json"))
    assert listed["decisions"] == ["DECLINE"] and listed["status"] == "active"
    assert not any(secret in run("webhooks", "list") for secret in (*added["keys"], added["token"]))
    new = run("webhooks", "rotate", endpoint, "--overlap", "1").split()
    assert len(new) == 2 and not set(new) & set(added["keys"])
    run("webhooks", "disable", endpoint, "--reason", "moving house")
    assert "moving house" in run("webhooks", "list")
    run("webhooks", "enable", endpoint)
    outward.decide(["m1", "m1"], decision="DECLINE")
    assert "queued: 2" in run("webhooks", "replay", endpoint, "--from", "0")
    found = json.loads(run("webhooks", "deliveries", endpoint, "--json"))
    assert [d["origin"] for d in found] == ["replay", "replay"]
    assert "not tried yet" in run("webhooks", "test", endpoint, "--wait", "0.2", code=1)
    run("webhooks", "remove", endpoint)
    assert json.loads(run("webhooks", "list", "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add", "http://10.0.0.1/"], "not public"),
        (["rotate", "ep_0"], "there is no endpoint"),
        (["replay", "ep_0", "--from", "1"], "there is no endpoint"),
        (["deliveries", "ep_0"], "there is no endpoint"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(run: Any, arguments: list[str], sentence: str) -> None:
    """Exit code 1 and the reason."""
    assert sentence in run("webhooks", *arguments, code=1)


def test_the_ledger_is_proved_and_a_card_erased(outward: Outward, run: Any) -> None:
    """`verify ledger` counts what has no chain; an erasure is shown before it is done."""
    outward.decide(["m1"], card_id="card-of-cli")
    erase = ("ledger", "erase", "--tenant", outward.tenant, "--card", "card-of-cli", "--reason", "request 1")
    assert "1 rows would forget the card" in run(*erase)
    assert "rows of before the chains: it is what was written" in run("verify", "ledger")
    assert "erased:" in run(*erase, "--apply")
    assert "has no card" in run(*erase, "--apply", code=1)
    assert outward.ask("SELECT count(*) FROM card_ledger WHERE card_id = 'card-of-cli'") == [(0,)]
    # The audit log tells of the erasure, and not of the card: it forgets nothing.
    audited = outward.ask(
        "SELECT details::text FROM audit.entries WHERE action = 'ledger.erase' AND object = 'ends'"
    )
    assert len(audited) == 2 and all("request 1" in told and "card-of-cli" not in told for (told,) in audited)
    run("verify", "ledger")
