"""What the broker answers to a principal that tries an operation: None, or the code of its refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from infra.broker import LIBRDKAFKA, admin
from infra.kafka_access import KafkaAccess
from schemas.grants import LOG_READER, Operation

SECONDS = 30.0

_WHATEVER: Any = None
EVERY_ACL = AclBindingFilter(
    ResourceType.ANY,
    _WHATEVER,
    ResourcePatternType.ANY,
    _WHATEVER,
    _WHATEVER,
    AclOperation.ANY,
    AclPermissionType.ANY,
)

LOADING = {KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE}
"""The first question about groups is answered so."""

Answers = dict[str, int | None]
"""By topic or group: the error's code, or None where it was done."""


Change = Callable[[KafkaAccess, Iterable[str]], Answers]


def code_of(error: KafkaException) -> int:
    reason = error.args[0]
    assert isinstance(reason, KafkaError), error
    return reason.code()


def answer(future: Future[Any]) -> int | None:
    try:
        future.result(timeout=SECONDS)
    except KafkaException as error:
        return code_of(error)
    return None


def answers(futures: Mapping[Any, Future[Any]]) -> Answers:
    return {getattr(name, "name", name): answer(future) for name, future in futures.items()}


def write(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    """A record to each topic."""
    found: Answers = {}
    # Without idempotence: its producer ends for good at the first refusal.
    sender = Producer(
        {**access.config(), "message.timeout.ms": int(SECONDS * 1000), "linger.ms": 0}, logger=LIBRDKAFKA
    )
    for topic in topics:

        def delivered(error: KafkaError | None, _: object, topic: str = topic) -> None:
            found[topic] = error.code() if error is not None else None

        try:
            sender.produce(topic, b"x", partition=0, on_delivery=delivered)
        except KafkaException as error:
            found[topic] = code_of(error)
    assert sender.flush(SECONDS) == 0
    return found


def read(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    """Each topic from its beginning to its end, without joining a group.

    A topic that may not even be described is refused when the consumer asks for its leader, which librdkafka
    tells nobody: it goes on asking.
    """
    found = {topic: code for topic, code in describe(access, topics).items() if code is not None}
    waiting = set(topics) - found.keys()
    consumer = Consumer(
        {
            **access.config(),
            "group.id": LOG_READER,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        },
        logger=LIBRDKAFKA,
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0) for topic in sorted(waiting)])
        end = time.monotonic() + SECONDS
        while waiting:
            assert time.monotonic() < end, f"neither read nor refused: {sorted(waiting)}"
            message = consumer.poll(0.5)
            error = message.error() if message is not None else None
            if message is None or error is None or message.topic() not in waiting:
                continue  # (a reader without a group may be told that it may not join one)
            topic = str(message.topic())
            found[topic] = None if error.code() == KafkaError._PARTITION_EOF else error.code()
            waiting.discard(topic)
    finally:
        consumer.close()
    return found


def describe(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    client = admin(access)  # held: answers are lost with a client that nobody holds
    return answers(client.describe_topics(TopicCollection(list(topics)), request_timeout=SECONDS))


def create(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    """As if each were made, and nothing is: one that is there is told from one that may not be made."""
    client = admin(access)
    made = client.create_topics([NewTopic(t, 1, 1) for t in topics], validate_only=True)
    return {
        topic: None if code == KafkaError.TOPIC_ALREADY_EXISTS else code
        for topic, code in answers(made).items()
    }


def delete(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    client = admin(access)  # held: answers are lost with a client that nobody holds
    return answers(client.delete_topics(list(topics), operation_timeout=SECONDS))


ON_TOPICS: Mapping[Operation, Change] = {
    Operation.WRITE: write,
    Operation.READ: read,
    Operation.DESCRIBE: describe,
    Operation.CREATE: create,
    Operation.DELETE: delete,
}


def widen(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    """As if each had more partitions."""
    client = admin(access)  # held: answers are lost with a client that nobody holds
    return answers(client.create_partitions([NewPartitions(t, 5) for t in topics], validate_only=True))


def configure(access: KafkaAccess, topics: Iterable[str]) -> Answers:
    """As if each forgot its records after a second."""
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    resources = [ConfigResource(ResourceType.TOPIC, t, incremental_configs=[entry]) for t in topics]
    client = admin(access)  # held: answers are lost with a client that nobody holds
    return answers(client.incremental_alter_configs(resources, validate_only=True))


def describe_group(client: AdminClient, group: str) -> int | None:
    (future,) = client.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(group)], request_timeout=SECONDS
    ).values()
    return answer(future)


def commit(client: AdminClient, group: str, topic: str) -> int | None:
    """A position as a member of the group commits it."""
    end = time.monotonic() + SECONDS
    while True:
        (future,) = client.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 0)])], request_timeout=SECONDS
        ).values()
        code = answer(future)
        if code is None:  # what was refused of a group is said of each of its partitions
            (at,) = future.result().topic_partitions
            code = at.error.code() if at.error is not None else None
        if code not in LOADING or time.monotonic() > end:
            return code
        time.sleep(0.1)


def delete_group(client: AdminClient, group: str) -> int | None:
    (future,) = client.delete_consumer_groups([group], request_timeout=SECONDS).values()
    return answer(future)


def acls_seen(access: KafkaAccess) -> int:
    """How many ACLs it is shown. (librdkafka keeps the refusal to itself, and hands out an empty list.)"""
    client = admin(access)
    return len(client.describe_acls(EVERY_ACL).result(timeout=SECONDS))


def govern(access: KafkaAccess, principal: str) -> dict[str, int | None]:
    """What makes a principal its own master: granting itself more, another's password, the broker's
    configuration, transactions."""
    client = admin(access)
    password = UserScramCredentialUpsertion(
        "operator", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), b"mine"
    )
    (granted,) = client.create_acls([all_topics(principal)]).values()
    (changed,) = client.alter_user_scram_credentials([password]).values()
    (broker,) = client.describe_configs([ConfigResource(ResourceType.BROKER, "1")]).values()
    found = {
        "grant": answer(granted),
        "set a password": answer(changed),
        "describe the broker": answer(broker),
    }
    sender = Producer({**access.config(), "transactional.id": f"of-{principal}"}, logger=LIBRDKAFKA)
    try:
        sender.init_transactions(SECONDS)
        found["transact"] = None
    except KafkaException as error:
        found["transact"] = code_of(error)
    return found


def all_topics(principal: str) -> AclBinding:
    """Everything on every topic, for somebody."""
    return AclBinding(
        ResourceType.TOPIC,
        "*",
        ResourcePatternType.LITERAL,
        f"User:{principal}",
        "*",
        AclOperation.ALL,
        AclPermissionType.ALLOW,
    )
