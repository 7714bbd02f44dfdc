"""`millrace rules` and `millrace lists` on a real database: from a line of text into force and back."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from infra.cli import build
from infra.postgres import connect
from infra.settings import Settings
from models.rules import store

TEXT = "when amount > 50 and mcc in list('risky') then decline score 0.3 reason 'dear and risky'"


def millrace(*arguments: str, refused: bool = False, given: str | None = None) -> str:
    result = CliRunner().invoke(build(), list(arguments), catch_exceptions=False, input=given)
    assert (result.exit_code != 0) == refused, result.output
    return result.output


def test_a_text_is_checked_with_and_without_a_database(database: Settings) -> None:
    """A mistake is drawn where it is; a rule comes back in its normal form, and says what it waits for."""
    output = millrace("rules", "check", TEXT.replace("amount", "amont"), refused=True)
    assert "     ^^^^^\ncharacter 6: there is no fact amont; did you mean amount?" in output
    assert "WHEN amount > 50 AND mcc IN list('risky')" in millrace("rules", "check", "-", given=TEXT)
    window = "WHEN count(card, 2h) > 3 THEN review REASON 'r'"
    assert "count(card, 2h) would be kept from now on" in millrace("rules", "check", window)
    assert "there is no list 'risky'" in millrace("rules", "check", "--offline", TEXT, refused=True)


def test_the_whole_way(database: Settings) -> None:
    """Add, backtest, approve, shadow, canary, activate, roll back; each says where the rule is then."""
    assert millrace("rules", "add", "dear", TEXT, "--as", "ann") == "dear@1 is a draft\n"
    assert "the same, and is draft" in millrace("rules", "add", "dear", TEXT, "--as", "ann")
    assert "was written by ann" not in millrace("rules", "approve", "dear", "--as", "ann", refused=True)
    report = json.loads(millrace("rules", "backtest", "dear", "--json", "--as", "ann"))
    assert report["matches"] == 0 and report["labels"] is None
    assert "dear@1 is backtested" in millrace(
        "rules", "backtest", "dear", "--from", "2025-01-01", "--to", "2025-02-01"
    )
    assert "somebody else" in millrace("rules", "approve", "dear", "--as", "ann", refused=True)
    assert "approved" in millrace("rules", "approve", "dear", "--as", "bob", "--note", "looks right")
    assert "version 3 of the rules applies" in millrace("rules", "shadow", "dear", "--as", "bob")
    assert "canary (0.2 of the cards, cap 0.05)" in millrace(
        "rules", "canary", "dear", "--share", "0.2", "--cap", "0.05"
    )
    assert "active (cap 0.01)" in millrace("rules", "activate", "dear")
    assert "dear@1 is active\n" in millrace("rules", "activate", "dear@1", "--no-cap")
    shown = millrace("rules", "show", "dear")
    assert "approved by bob (looks right)" in shown and "version 6 of the set" in shown
    listed = millrace("rules", "list")
    assert listed.count("\n") == 8 and "dear@1" in listed
    assert "version 7" in millrace("rules", "rollback", "dear")
    assert "dear@1" not in millrace("rules", "list") and "dear@1" in millrace("rules", "list", "--all")
    assert "version 8" in millrace("rules", "rollback", "--to", "4")
    assert "did you mean dear?" in millrace("rules", "show", "deer", refused=True)
    with connect(database.database_url) as connection:
        assert store.find(connection, "dear").share == 0.2


def test_lists_and_rates(database: Settings) -> None:
    """Values are put in, shown with their expiry, and taken out; rates are stated; each publishes."""
    assert "applies from" in millrace("lists", "add", "stolen", "m1", "m2", "--until", "2026-05-01")
    assert "m1  until 2026-05-01T00:00:00Z" in millrace("lists", "show", "stolen")
    assert "stolen" in millrace("lists", "list") and "applies" in millrace("lists", "remove", "stolen", "m1")
    assert "did you mean stolen?" in millrace("lists", "show", "stoln", refused=True)
    assert "applies from" in millrace(
        "rules", "rates", "EUR", "USD=1.08", "GBP=0.85", "--as-of", "2026-01-02"
    )
    assert "cannot be used" in millrace("rules", "rates", "EUR", "USD=x", refused=True)
    assert "count(card, 1h)" in millrace("rules", "words") and "home_country" in millrace("rules", "words")
