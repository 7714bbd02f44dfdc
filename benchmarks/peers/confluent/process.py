"""The limit of `process`: the bytes of one topic handed on to another, nothing done with them.

librdkafka's batch call on both sides; offsets are committed by the default of every five seconds.
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
producer = Producer({"bootstrap.servers": JOB["bootstrap"], **PRODUCER})
while not ended:
    for message in consumer.consume(10_000, 0.1):
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
