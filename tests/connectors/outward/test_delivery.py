"""Webhooks against a real receiver and a real database: told once, in order, whatever fails."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable

import pytest

from connectors.outward import endpoints
from connectors.outward.deliverer import open_vault
from connectors.outward.signing import Unverified, verify
from infra import deliveries
from infra.services.rotation import rotate
from tests.connectors.outward.conftest import Outward, until
from tests.connectors.outward.receiver import ENDLESS, HANG, HUGE, LOSE, Received, Receiver


def firsts(received: Iterable[Received]) -> list[str]:
    """The events in the order in which each was first seen."""
    return list(dict.fromkeys(r.event for r in received))


def in_order(receiver: Receiver, decided: list[tuple[str, str]]) -> None:
    """Each merchant's decisions came in their order, and what came again had the same id and body."""
    by_merchant: dict[str | None, list[Received]] = defaultdict(list)
    for received in receiver.seen:
        by_merchant[received.merchant].append(received)
    for merchant in {m for _, m in decided}:
        expected = [event for event, m in decided if m == merchant]
        assert firsts(by_merchant[merchant]) == expected
        # A repeat comes before the next one, never after it.
        seen = [r.event for r in by_merchant[merchant]]
        assert seen == sorted(seen)
    ids: dict[str, set[tuple[str, bytes]]] = defaultdict(set)
    for received in receiver.seen:
        ids[received.event].add((received.id, received.body))
    assert all(len(found) == 1 for found in ids.values())
    assert len({next(iter(found))[0] for found in ids.values()}) == len(ids)


def mixed(outward: Outward, merchants: int, rounds: int) -> list[tuple[str, str]]:
    """Decisions of several merchants by turns: event and merchant."""
    names = [f"m{n}" for n in range(merchants)]
    return [pair for _ in range(rounds) for pair in zip(outward.decide(names), names, strict=True)]


def test_a_decision_is_told_once_and_signed_both_ways(outward: Outward) -> None:
    """What was decided arrives once, verifies with secret and with public key, and with no other."""
    outward.decide(["m1"])  # before anybody asked
    receiver, added = outward.receiver(asymmetric=True)
    events = outward.decide(["m1", "m2", None])
    with outward.delivering():
        until(lambda: len(receiver.taken) == 3)
        time.sleep(0.3)
    assert sorted(r.event for r in receiver.seen) == events
    secret, public = added.keys
    for received in receiver.seen:
        verify(secret, received.headers, received.body, received.at)
        verify(public, received.headers, received.body, received.at)
        with pytest.raises(Unverified):
            verify(secret, received.headers, received.body + b" ", received.at)
        with pytest.raises(Unverified):
            verify(secret, received.headers | {"webhook-id": "dec_other"}, received.body, received.at)
        with pytest.raises(Unverified):
            verify(secret, received.headers, received.body, received.at + 3600)
        assert received.told["type"] == "decision.made" and received.told["data"]["tenant"] == outward.tenant


def test_only_what_was_asked_for_is_told(outward: Outward) -> None:
    """Merchant, decision, least risk and tenant all narrow; what nobody wants is not in the outbox."""
    receiver, _ = outward.receiver(merchant="m1", decisions=["DECLINE"], risk_min=0.5)
    wanted = outward.decide(["m1"], decision="DECLINE", risk=0.5)
    outward.decide(["m2"], decision="DECLINE", risk=0.9)
    outward.decide(["m1"], decision="REVIEW", risk=0.9)
    outward.decide(["m1"], decision="DECLINE", risk=0.49)
    outward.decide(["m1"], decision="DECLINE", risk=0.9, tenant="another")
    assert outward.ask("SELECT event_id FROM outbox") == [(wanted[0],)]
    with outward.delivering():
        until(lambda: len(receiver.taken) == 1)
    assert firsts(receiver.seen) == wanted


def test_failures_hangs_and_lost_answers_keep_the_order(outward: Outward) -> None:
    """A third of the requests goes wrong in some way: all arrive in each merchant's order, repeats alike."""
    receiver, _ = outward.receiver()
    chance = random.Random(7)
    receiver.behave = lambda _: chance.choices((200, 500, 404, LOSE, HANG), (66, 10, 10, 10, 1))[0]
    decided = mixed(outward, 5, 12)
    with outward.delivering(MILLRACE_WEBHOOK_RETRY_MOST_MS="100"):
        until(lambda: len({r.event for r in receiver.taken}) == len(decided), 90)
        until(lambda: outward.ask("SELECT sum(pending) FROM outward_lanes") == [(0,)])
    in_order(receiver, decided)
    assert len(receiver.seen) > len(decided)


def test_a_receiver_that_was_down_gets_all_in_order(outward: Outward) -> None:
    """Nothing is lost while nobody listens; afterwards everything comes, each merchant's in its order."""
    receiver, added = outward.receiver()
    decided = mixed(outward, 3, 5)
    with outward.delivering():
        until(lambda: len(receiver.taken) == len(decided))
        receiver.down()
        decided += mixed(outward, 3, 20)
        until(lambda: outward.status(added.endpoint_id)["failures"] >= 3)
        decided += mixed(outward, 3, 5)
        receiver.up()
        until(lambda: len({r.event for r in receiver.taken}) == len(decided))
    in_order(receiver, decided)
    attempts = outward.ask("SELECT sum(attempts) FROM outward_deliveries")[0][0]
    # While it was down one lane tried it, not all of them.
    assert attempts - len(decided) < 40


def test_gone_disables_and_enabling_goes_on_without_a_gap(outward: Outward) -> None:
    """410 ends it at once; what is decided meanwhile waits; enabled again it goes on where it stopped."""
    receiver, added = outward.receiver()
    decided = mixed(outward, 2, 2)
    with outward.delivering():
        until(lambda: len(receiver.taken) == 4)
        receiver.behave = lambda _: 410
        decided += mixed(outward, 2, 2)
        until(lambda: outward.status(added.endpoint_id)["status"] == "disabled")
        assert "410" in outward.status(added.endpoint_id)["reason"]
        time.sleep(0.3)
        seen = len(receiver.seen)
        decided += mixed(outward, 2, 2)
        time.sleep(0.5)
        assert len(receiver.seen) == seen
        receiver.behave = lambda _: 200
        deliveries.enable(outward.connection, added.endpoint_id)
        until(lambda: len({r.event for r in receiver.taken}) == len(decided))
    in_order(receiver, decided)


def test_failing_for_too_long_disables(outward: Outward) -> None:
    """A message that is refused for longer than the limit disables its endpoint, and the reason names it."""
    receiver, added = outward.receiver()
    receiver.behave = lambda _: 400
    outward.decide(["m1"])
    with outward.delivering(MILLRACE_WEBHOOK_DISABLE_AFTER_S="1"):
        until(lambda: outward.status(added.endpoint_id)["status"] == "disabled")
    assert receiver.seen[0].id in outward.status(added.endpoint_id)["reason"]
    assert len({r.id for r in receiver.seen}) == 1


def test_a_message_that_is_refused_stops_its_merchant_alone(outward: Outward) -> None:
    """Another merchant's decisions go on while one lane tries again and again."""
    receiver, _ = outward.receiver()
    bad, *_ = outward.decide(["m1", "m1"])
    receiver.behave = lambda r: 400 if r.event == bad else 200
    others = [outward.decide(["m2"])[0] for _ in range(10)]
    with outward.delivering():
        until(lambda: [r.event for r in receiver.taken] == others)
        until(lambda: sum(r.event == bad for r in receiver.seen) >= 3)
    assert all(r.event == bad for r in receiver.seen if r.merchant == "m1")


def test_a_rotation_overlaps(outward: Outward) -> None:
    """Old and new secret both verify until the overlap ends; then only the new one does."""
    receiver, added = outward.receiver(asymmetric=True)
    vault = open_vault(outward.settings)
    new = endpoints.rotate(outward.connection, vault, added.endpoint_id, 3600)
    with outward.delivering():
        outward.decide(["m1"])
        until(lambda: len(receiver.taken) == 1)
        for key in (*added.keys, *new):
            verify(key, receiver.seen[0].headers, receiver.seen[0].body, receiver.seen[0].at)
        newest = endpoints.rotate(outward.connection, vault, added.endpoint_id, 0)
        outward.decide(["m1"])
        until(lambda: len(receiver.taken) == 2)
    last = receiver.seen[1]
    for key in newest:
        verify(key, last.headers, last.body, last.at)
    for key in new:
        with pytest.raises(Unverified):
            verify(key, last.headers, last.body, last.at)


def test_secrets_lie_encrypted_and_readers_see_none(outward: Outward) -> None:
    """Neither a dump of the database nor the analysts' role has anything to sign with."""
    _, added = outward.receiver(asymmetric=True)
    dump = str(outward.ask("SELECT * FROM outward_secrets")) + str(
        outward.ask("SELECT * FROM outward_endpoints")
    )
    assert added.keys[0] not in dump and added.token is not None and added.token not in dump
    assert outward.ask("SELECT has_table_privilege('millrace_reader', 'outward_secrets', 'SELECT')") == [
        (False,)
    ]


def test_a_range_is_sent_again_under_the_same_ids(outward: Outward) -> None:
    """`replay` repeats what lies in its range, in order and with the ids of the first time, and no more."""
    receiver, added = outward.receiver()
    events = [outward.decide(["m1"])[0] for _ in range(6)]
    with outward.delivering():
        until(lambda: len(receiver.taken) == 6)
        cursors = dict(outward.ask("SELECT event_id, sequence FROM outbox"))
        assert (
            deliveries.replay(outward.connection, added.endpoint_id, cursors[events[1]], cursors[events[3]])
            == 3
        )
        until(lambda: len(receiver.taken) == 9)
        time.sleep(0.2)
    assert [r.event for r in receiver.seen] == [*events, *events[1:4]]
    assert [r.id for r in receiver.seen[6:]] == [r.id for r in receiver.seen[1:4]]


@pytest.mark.parametrize("behaviour", [ENDLESS, (302, {"location": "http://127.0.0.1:1/"})])
def test_an_answer_without_an_end_or_elsewhere_is_none(outward: Outward, behaviour: object) -> None:
    """An answer that trickles on is cut off in time, a redirect is not followed; both are tried again."""
    receiver, _ = outward.receiver()
    receiver.behave = lambda r: behaviour if r.n == 0 else 200
    outward.decide(["m1"])
    with outward.delivering():
        until(lambda: len(receiver.taken) == 1)
    assert len(receiver.seen) == 2 and receiver.seen[0].id == receiver.seen[1].id


def test_no_more_of_an_answer_is_read_than_needed(outward: Outward) -> None:
    """A receiver that sends without end what nobody asked for has answered after 64 KiB."""
    receiver, _ = outward.receiver()
    receiver.behave = lambda _: HUGE
    outward.decide(["m1", "m1"])
    with outward.delivering():
        until(lambda: outward.ask("SELECT sum(pending) FROM outward_lanes") == [(0,)])
    assert len(receiver.seen) == 2
    assert outward.ask("SELECT max(length(last_answer)) FROM outward_deliveries") == [(500,)]


def test_retry_after_is_kept(outward: Outward) -> None:
    """Who says when to come back is not asked before."""
    receiver, _ = outward.receiver()
    receiver.behave = lambda r: (429, {"retry-after": "2"}) if r.n == 0 else 200
    outward.decide(["m1", "m1"])
    with outward.delivering():
        until(lambda: len(receiver.taken) == 2)
    first = receiver.seen[0].at
    assert min(r.at for r in receiver.taken) - first > 1.9


def test_the_test_message_says_what_was_answered(outward: Outward) -> None:
    """`webhooks test` reaches the receiver, signed, and its outcome stands in the deliveries."""
    receiver, added = outward.receiver()
    delivery = deliveries.send_test(outward.connection, added.endpoint_id)
    with outward.delivering():
        until(lambda: len(receiver.taken) == 1)
        until(lambda: outward.ask("SELECT sum(pending) FROM outward_lanes") == [(0,)])
    assert receiver.seen[0].told["type"] == "webhook.test"
    verify(added.keys[0], receiver.seen[0].headers, receiver.seen[0].body, receiver.seen[0].at)
    (found,) = deliveries.deliveries(outward.connection, added.endpoint_id, 5)
    assert (found["delivery_id"], found["status"], found["last_status"]) == (delivery, "delivered", 200)


def test_killed_deliverers_lose_nothing(outward: Outward) -> None:
    """Processes killed with -9 while they deliver: all arrives, in order, repeats only with the same id."""
    receiver, _ = outward.receiver()
    receiver.behave = lambda _: (time.sleep(0.01), 200)[1]
    decided = mixed(outward, 4, 40)
    environ = {**os.environ, **outward.settings.environ, "MILLRACE_WEBHOOK_TIMEOUT_MS": "300"}
    environ["PYTHONPATH"] = "."
    # The lease ends long after a test's patience; a killed process's is taken away as time would do it.
    kills = 0

    def all_of_them() -> bool:
        return len({r.event for r in receiver.taken}) == len(decided)

    while not all_of_them():
        process = subprocess.Popen((sys.executable, "-m", "connectors", "webhooks"), env=environ)
        before = len(receiver.seen)
        try:
            until(lambda before=before: all_of_them() or len(receiver.seen) >= before + 30, 60)  # type: ignore[misc]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        kills += 1
        outward.connection.execute("UPDATE outward_lanes SET leased_until = now() - interval '1 s'")
        assert kills < 30
    assert kills >= 3
    in_order(receiver, decided)


def test_a_lease_that_has_gone_settles_nothing(outward: Outward) -> None:
    """Who was thought dead cannot mark deliveries that another process works on by now."""
    _, added = outward.receiver()
    outward.decide(["m1"])
    outward.ask("SELECT outward_fan_out(10)")
    outward.connection.execute(
        "UPDATE outward_lanes SET lease = 'other', leased_until = now() + interval '9 s'"
    )
    [(delivery,)] = outward.ask("SELECT delivery_id FROM outward_deliveries")
    assert outward.ask("SELECT outward_settle('mine', %s, 200, '', 1, 10)", [delivery]) == [(False,)]
    assert outward.ask("SELECT outward_failed('mine', %s, 500, '', '', 1, 1, 1)", [delivery]) == [(False,)]
    assert outward.status(added.endpoint_id)["pending"] == 1
    assert outward.ask("SELECT outward_settle('other', %s, 200, '', 1, 10)", [delivery]) == [(True,)]
    assert outward.status(added.endpoint_id)["pending"] == 0


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("ftp://example.com/", "https"),
        ("https://user:pw@example.com/", "user"),
        ("http://10.1.2.3/", "not public"),
        ("https://169.254.169.254/latest", "not public"),
        ("https://[::ffff:10.0.0.1]/", "not public"),
        ("https://2130706433/", "127.0.0.1"),
        ("http://1.1.1.1/", "use https"),
        ("mailto:nobody", "mailbox"),
    ],
)
def test_targets_that_cannot_be_are_refused(outward: Outward, target: str, reason: str) -> None:
    """An endpoint that could never be sent to, or must not be, is not added."""
    if "2130706433" in target:
        outward.settings = type(outward.settings)({**outward.settings.environ, "MILLRACE_WEBHOOK_ALLOW": ""})
    with pytest.raises(deliveries.EndpointError, match=reason):
        outward.add(target)
    assert deliveries.listed(outward.connection) == []


def test_deliveries_go_on_through_a_rotation(outward: Outward) -> None:
    """The deliverer's sessions end with its old password, and it comes back with the new one."""
    receiver, _ = outward.receiver()
    with outward.delivering():
        before = outward.decide(["m1"])
        until(lambda: len(receiver.taken) == 1)
        assert rotate(outward.settings, "outward") > 0
        after = outward.decide(["m1"])
        until(lambda: {r.told["data"]["event_id"] for r in receiver.taken} == {*before, *after})
    # (One that was told as its session ended is told again, as nobody could note it.)
    told = dict.fromkeys(request.told["data"]["event_id"] for request in receiver.taken)
    assert list(told) == before + after
