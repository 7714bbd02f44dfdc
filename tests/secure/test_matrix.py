"""Who may do what, tried: principal x operation x topic or group, on a real broker, cell by cell."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from infra.broker import admin
from infra.services.kafka_principals import root
from infra.settings import Settings
from schemas.grants import LOG_READER, Operation, Resource, allowed, grants, principals
from schemas.pipelines import PIPELINES
from tests.secure import cells
from tests.secure.conftest import DECLARED, TOPICS, access, make_topics

pytestmark = pytest.mark.secure

TABLE = grants(PIPELINES)
PRINCIPALS = principals(PIPELINES)
GROUPS = sorted({g.name for g in TABLE if g.resource is Resource.GROUP} | {"nobodys-group"})


@pytest.mark.parametrize("operation", list(Operation))
def test_topics(secured: Settings, operation: Operation) -> None:
    """Every principal does to each topic what the table allows, and is refused all else as unauthorised."""
    wrong, tried = [], 0
    for principal in PRINCIPALS:
        found = cells.ON_TOPICS[operation](access(secured, principal), TOPICS)
        if operation is Operation.DELETE:
            make_topics(secured)
        for topic in TOPICS:
            may = allowed(TABLE, principal, operation, Resource.TOPIC, topic)
            tried += 1
            if found[topic] != (None if may else KafkaError.TOPIC_AUTHORIZATION_FAILED):
                wrong.append((principal, topic, "may" if may else "may not", found[topic]))
    assert wrong == []
    assert tried == len(PRINCIPALS) * len(TOPICS)


@pytest.mark.parametrize("change", [cells.widen, cells.configure])
def test_nobody_changes_a_topic(secured: Settings, change: cells.Change) -> None:
    """Partitions and configuration of a topic are in nobody's hands."""
    for principal in PRINCIPALS:
        found = change(access(secured, principal), TOPICS)
        assert found == dict.fromkeys(TOPICS, KafkaError.TOPIC_AUTHORIZATION_FAILED), principal


def test_groups(secured: Settings) -> None:
    """Each consumer commits in its own groups, readers without one look theirs up, and nobody deletes any."""
    wrong = []
    for principal in PRINCIPALS:
        client = admin(access(secured, principal))
        # The position itself must be of a topic that the principal may read, or that would be refused.
        readable = [t for t in DECLARED if allowed(TABLE, principal, Operation.READ, Resource.TOPIC, t)]
        topic = (readable or DECLARED)[0]
        for group in GROUPS:
            for operation, found in (
                (Operation.READ, cells.commit(client, group, topic)),
                (Operation.DESCRIBE, cells.describe_group(client, group)),
                (Operation.DELETE, cells.delete_group(client, group)),
            ):
                may = allowed(TABLE, principal, operation, Resource.GROUP, group)
                if found != (None if may else KafkaError.GROUP_AUTHORIZATION_FAILED):
                    wrong.append((principal, operation, group, may, found))
    assert wrong == []
    assert not any(g.operation is Operation.READ and g.name == LOG_READER for g in TABLE)


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_nobody_governs_the_broker(secured: Settings, principal: str) -> None:
    """No principal sees or sets ACLs, passwords or the broker's settings, or begins a transaction."""
    refused = KafkaError.CLUSTER_AUTHORIZATION_FAILED
    assert cells.govern(access(secured, principal), principal) == {
        "grant": refused,
        "set a password": refused,
        "describe the broker": refused,
        "transact": KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
    assert cells.acls_seen(access(secured, principal)) == 0 < cells.acls_seen(root(secured))
