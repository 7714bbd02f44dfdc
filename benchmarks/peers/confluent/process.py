"""The limit of `process` and `latency`: bytes of one topic handed on to another, nothing done with them.

The smallest loop: one call waits for a record, one takes what else is there. Offsets are committed by the
default of every five seconds. For latency the producer waits for less (`linger_ms`).
"""

import signal

from confluent_kafka import Consumer, Producer

from benchmarks.peers.task import JOB, PRODUCER

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))

consumer = Consumer(
    {"bootstrap.servers": JOB["bootstrap"], "group.id": JOB["tag"], "auto.offset.reset": "earliest"}
)
consumer.subscribe([JOB["source"]])
linger_ms = JOB.get("linger_ms", PRODUCER["linger.ms"])
producer = Producer({"bootstrap.servers": JOB["bootstrap"], **PRODUCER, "linger.ms": linger_ms})
while not ended:
    messages = consumer.consume(1, 0.1)
    if messages:
        messages += consumer.consume(10_000, 0)
    for message in messages:
        if message.error():
            raise RuntimeError(message.error())
        while True:
            try:
                producer.produce(JOB["target"], message.value(), message.key())
                break
            except BufferError:
                producer.poll(0.1)
    producer.poll(0)
producer.flush()
consumer.close()
