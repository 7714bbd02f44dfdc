"""`millrace rules`: fraud rules from a line of text into force, and back out."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.audit.shell import audited
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.postgres import Connection
    from models.rules.backtest import Report
    from models.rules.store import Stored

app = typer.Typer()
rules = typer.Typer(
    help="Fraud rules: write, try, approve, watch, switch on, roll back.", no_args_is_help=True
)
app.add_typer(rules, name="rules")

Rule = Annotated[str, typer.Argument(help="A rule by its id (its newest version), or as id@version.")]
As = Annotated[str, typer.Option("--as", help="Who does it; default the user of this machine.")]
Note = Annotated[str, typer.Option("--note", help="Why; it is kept with the step.")]
Cap = Annotated[
    float, typer.Option(help="Which share of a partition's transactions of a day it may decline at most.")
]


@contextmanager
def store() -> Iterator[Connection]:
    """A connection; what cannot be done with rules is said in one line."""
    from infra.postgres import connect
    from models.rules.problem import RuleError

    try:
        with connect(Settings.load().database_url, "millrace-rules") as connection:
            yield connection
    except RuleError as error:
        typer.echo(f"millrace: {error}" if "\n" not in str(error) else str(error), err=True)
        raise typer.Exit(1) from None


def who(actor: str) -> str:
    """Whoever is named, or this machine's user. (Whoever has the database's password may name anybody.)"""
    return actor or getpass.getuser()


@rules.command()
def check(
    text: Annotated[str, typer.Argument(help="The rule; - reads it from standard input.")],
    offline: Annotated[bool, typer.Option("--offline", help="Without the lists and rates stored.")] = False,
) -> None:
    """Say all that is wrong with a rule's text, or what it is in its normal form."""
    from models.rules.checking import Context, understand
    from models.rules.problem import CheckError
    from models.rules.ruleset import content_hash
    from models.rules.store import read_context, read_windows
    from models.rules.syntax import normal

    text = sys.stdin.read().strip() if text == "-" else text
    if offline:
        try:
            meaning = understand(text, Context())
        except CheckError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        new = meaning.windows
    else:
        with store() as connection:
            meaning = understand(text, read_context(connection))
            new = [w for w in meaning.windows if w not in read_windows(connection)]
    typer.echo(normal(text))
    typer.echo(f"fine; {content_hash(text)[:12]}")
    if new:
        typer.echo(f"{', '.join(new)} would be kept from now on; until decisions hold it the rule is warming")


@rules.command()
@audited("rules.add")
def add(
    rule: Annotated[str, typer.Argument(help="The rule's id; one that is there gets another version.")],
    text: Annotated[str, typer.Argument(help="The rule; - reads it from standard input.")],
    description: Annotated[str, typer.Option(help="What it is for; default its reason.")] = "",
    actor: As = "",
) -> None:
    """Store a rule as a draft."""
    from models.rules import store as rule_store

    with store() as connection:
        text = sys.stdin.read().strip() if text == "-" else text
        found, is_new = rule_store.add(connection, rule, text, who(actor), description)
    typer.echo(f"{found.key} is {'a draft' if is_new else f'the same, and is {found.stage}'}")
    if found.missing_windows:
        typer.echo(f"warming: {', '.join(found.missing_windows)} is kept from now on")


@rules.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also what is retired.")] = False,
) -> None:
    """Every rule, and where it stands."""
    from models.rules import store as rule_store

    with store() as connection:
        for rule in rule_store.stored(connection):
            if everything or rule.stage != "retired":
                typer.echo(f"{rule.key:28} {_standing(rule):32} {rule.text}")


@rules.command()
def show(rule: Rule) -> None:
    """One rule: its text, its way, its last backtest."""
    from models.rules import store as rule_store

    with store() as connection:
        found = rule_store.find(connection, rule)
        typer.echo(f"{found.key}: {_standing(found)}\n{found.text}")
        typer.echo(
            f"{found.description}\nby {found.author}, {found.created_at:%Y-%m-%d %H:%M}, {found.sha256}"
        )
        for event in rule_store.events(connection, found.id):
            published = f", version {event.rules_version} of the set" if event.rules_version else ""
            note = f" ({event.note})" if event.note else ""
            typer.echo(
                f"  {event.at:%Y-%m-%d %H:%M} {found.id}@{event.version} {event.stage}"
                f"{_bounds(event.share, event.cap)} by {event.actor}{note}{published}"
            )
        report = rule_store.last_backtest(connection, found)
    if report is not None:
        typer.echo(f"backtest of {report['since']} to {report['until']}: {report['matches']} matches")


@rules.command()
@audited("rules.backtest")
def backtest(
    rule: Rule,
    since: Annotated[
        datetime | None, typer.Option("--from", help="From this event time on (UTC); default 30 days ago.")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="Before this event time (UTC).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    actor: As = "",
) -> None:
    """Say what a rule would have done with the transactions of a period; a draft is then backtested."""
    from models.rules import store as rule_store
    from models.rules.backtest import backtest as run
    from models.rules.checking import understand

    end = datetime.now(UTC) if until is None else until.replace(tzinfo=UTC)
    start = end - timedelta(days=30) if since is None else since.replace(tzinfo=UTC)
    with store() as connection:
        found = rule_store.find(connection, rule)
        report = run(connection, understand(found.text, rule_store.read_context(connection)), start, end)
        now = rule_store.record_backtest(connection, found, start, end, report.as_json(), who(actor))
    if as_json:
        import json

        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        typer.echo(f"{found.key} is {now.stage}\n{_told(report)}")


@rules.command()
@audited("rules.approve")
def approve(rule: Rule, note: Note = "", actor: As = "") -> None:
    """Approve what somebody else wrote and backtested."""
    _move(rule, "approved", actor, note=note)


@rules.command()
@audited("rules.shadow")
def shadow(rule: Rule, note: Note = "", actor: As = "") -> None:
    """Let decisions tell where it would have fired, without effect."""
    _move(rule, "shadow", actor, note=note)


@rules.command()
@audited("rules.canary")
def canary(
    rule: Rule,
    share: Annotated[float, typer.Option(help="On which share of the cards it decides.")] = 0.1,
    cap: Cap = 0.01,
    note: Note = "",
    actor: As = "",
) -> None:
    """Let it decide on some of the cards, always the same ones."""
    _move(rule, "canary", actor, share=share, cap=cap, note=note)


@rules.command()
@audited("rules.activate")
def activate(
    rule: Rule,
    cap: Cap = 0.01,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="Let it decline as much as it matches.")] = False,
    note: Note = "",
    actor: As = "",
) -> None:
    """Let it decide on all cards; the version that was active is retired. Again: change or lift its cap."""
    _move(rule, "active", actor, cap=None if no_cap else cap, note=note)


@rules.command()
@audited("rules.retire")
def retire(rule: Rule, note: Note = "", actor: As = "") -> None:
    """Take it out of force for good."""
    _move(rule, "retired", actor, note=note)


@rules.command()
@audited("rules.rollback")
def rollback(
    rule: Annotated[str | None, typer.Argument(help="A rule's id.")] = None,
    to: Annotated[int | None, typer.Option(help="Put all rules back as in this version of the set.")] = None,
    actor: As = "",
) -> None:
    """Put back what was in force before: of one rule, or of all."""
    from models.rules import store as rule_store

    if (rule is None) == (to is None):
        raise typer.BadParameter("name a rule, or a version of the set with --to")
    with store() as connection:
        if to is not None:
            typer.echo(_published(rule_store.roll_back_to(connection, to, who(actor))))
        elif rule is not None:
            before, published = rule_store.roll_back(connection, rule, who(actor))
            typer.echo(
                f"{before.key} is active again" if before else f"what was on trial of {rule} is retired"
            )
            typer.echo(_published(published))


@rules.command()
@audited("rules.rates")
def rates(
    stated: Annotated[str, typer.Argument(help="The currency that amounts in rules are in, as EUR.")],
    others: Annotated[list[str], typer.Argument(help="What one of it is worth in others, as USD=1.08.")],
    as_of: Annotated[str, typer.Option(help="The day of the rates, as 2026-01-02; default today.")] = "",
    actor: As = "",
) -> None:
    """State the currency of amounts, and rates; rules compare by them from the next version on."""
    from models.rules import store as rule_store

    given = dict(other.partition("=")[::2] for other in others)
    day = date.fromisoformat(as_of) if as_of else datetime.now(UTC).date()
    with store() as connection:
        typer.echo(_published(rule_store.state_rates(connection, stated, given, day, who(actor))))


@rules.command()
def words() -> None:
    """The facts and windows that rules are made of."""
    from models.rules import vocabulary

    for word, kind, about in vocabulary.words():
        typer.echo(f"{word:30} {kind:12} {about}")


def _move(rule: str, to: str, actor: str, **more: Any) -> None:
    from models.rules import store as rule_store
    from models.rules.lifecycle import Stage

    with store() as connection:
        found, published = rule_store.move(connection, rule, Stage(to), who(actor), **more)
    typer.echo(f"{found.key} is {_standing(found)}")
    if published is not None:
        typer.echo(_published(published))


def _published(version: int | None) -> str:
    if version is None:
        return "nothing changed in force"
    return f"version {version} of the rules applies from each partition's next batch on"


def _standing(rule: Stored) -> str:
    warming = f", warming: {', '.join(rule.missing_windows)}" if rule.missing_windows else ""
    return f"{rule.stage}{_bounds(rule.share, rule.cap)}{warming}"


def _bounds(share: float, cap: float | None) -> str:
    found = [f"{share:.3g} of the cards"] if share < 1 else []
    found += [f"cap {cap:.3g}"] if cap is not None else []
    return f" ({', '.join(found)})" if found else ""


def _told(report: Report) -> str:
    """A report for people. Value in major units is left to whoever knows the currency."""
    lines = [
        f"transactions  {report.transactions:,} from {report.since} to {report.until}",
        f"matches       {report.matches:,} ({report.share:.3%}) on {report.cards:,} cards; unknown for"
        f" {report.unknown:,}",
        f"value         {_values(report.value)}",
        f"alerts        {report.alerts_a_day:.1f} a day, at most {report.alerts_most:,}",
        f"changes       {_counts(report.changes)}",
        f"overlap       {_counts(report.overlap)}; alone {report.alone:,}",
    ]
    if (labels := report.labels) is not None:
        rate = "none" if labels.precision is None else f"{labels.precision:.1%}"
        reach = "none" if labels.recall is None else f"{labels.recall:.1%}"
        lines += [
            f"frauds        {labels.caught:,} of {labels.frauds:,} ({reach}), {labels.caught_first:,} of them"
            f" approved before; {_values(labels.caught_value)} of {_values(labels.fraud_value)}",
            f"false alarms  {labels.false_positives:,}; right in {rate};"
            f" {labels.unlabelled_matches:,} unlabelled",
        ]
    else:
        lines.append("frauds        nobody has sent labels")
    lines += [
        f"  {s['at']} {s['event_id']} {s['amount_minor']} {s['currency']} {s['decision']}"
        for s in report.samples
    ]
    return "\n".join(lines)


def _values(value: dict[str, int]) -> str:
    return ", ".join(f"{minor:,} {currency} (minor units)" for currency, minor in value.items()) or "none"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
