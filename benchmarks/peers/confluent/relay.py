"""The limit of `latency`: whatever there is to read is handed on at once, nothing done with it.

The smallest loop: one call waits for a record, one takes what else is there; a linger of 1 ms, all other
settings as everybody's.
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
producer = Producer({"bootstrap.servers": JOB["bootstrap"], **PRODUCER, "linger.ms": "1"})
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
