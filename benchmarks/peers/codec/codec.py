"""One codec over all schemas, `codec.py SUBJECT`: prints rates and whether values and bytes were right.

Every subject makes a decode and an encode from a schema once, as its documentation says, and then handles
one record a call, the header of Confluent's wire format included.
"""

import datetime
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import time
from pathlib import Path

JOB = json.loads(os.environ["BENCH_JOB"])


def millrace(given):
    """`infra.codec.Codec`, with all that it checks."""
    from infra.codec import Codec
    from schemas.pipelines import PIPELINES

    codec = Codec(JOB["registry"])
    topics = {x.subject: x for p in PIPELINES for t in p.topics for x in (t, t.dlq)}
    topic = topics[given["subject"]]
    return lambda value: codec.decode(topic, value).event, lambda event: codec.encode(topic, event)


def fastavro(given):
    """Its schemaless functions on a parsed schema, logical types taken off, which is faster."""
    import fastavro

    schema = fastavro.parse_schema(_bare(json.loads(given["schema"])))
    header = given["records"][0][:5]

    def decode(value):
        body = io.BytesIO(value)
        body.seek(5)
        return fastavro.schemaless_reader(body, schema)

    def encode(event):
        out = io.BytesIO()
        out.write(header)
        fastavro.schemaless_writer(out, schema, event)
        return out.getvalue()

    return decode, encode


def confluent(given):
    """Confluent's AvroDeserializer and AvroSerializer, which ask the registry once."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": JOB["registry"]})
    read = AvroDeserializer(client, given["schema"])
    write = AvroSerializer(client, given["schema"], conf={"auto.register.schemas": False})
    context = SerializationContext(given["subject"].removesuffix("-value"), MessageField.VALUE)
    return lambda value: read(value, context), lambda event: write(event, context)


def avro(given):
    """Apache's own package, in Python throughout."""
    import avro.io
    import avro.schema

    schema = avro.schema.parse(given["schema"])
    reader, writer = avro.io.DatumReader(schema), avro.io.DatumWriter(schema)
    header = given["records"][0][:5]

    def decode(value):
        body = io.BytesIO(value)
        body.seek(5)
        return reader.read(avro.io.BinaryDecoder(body))

    def encode(event):
        out = io.BytesIO()
        out.write(header)
        writer.write(event, avro.io.BinaryEncoder(out))
        return out.getvalue()

    return decode, encode


def _bare(schema):
    if isinstance(schema, dict):
        return {k: _bare(v) for k, v in schema.items() if k != "logicalType"}
    return [_bare(s) for s in schema] if isinstance(schema, list) else schema


def _plain(value):
    """What JSON has no form for: times as milliseconds, bytes as hex."""
    if isinstance(value, datetime.datetime):
        return round((value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds() * 1000)
    return value.hex()


def _rate(call, values, seconds):
    """Calls per second, and the results of the first round."""
    results, rounds, began = [call(v) for v in values], 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not rounds:
        for value in values:
            call(value)
        rounds += 1
    return rounds * len(values) / spent, results


def main(make):
    inputs = pickle.loads(Path(JOB["input"]).read_bytes())
    each = JOB["seconds"] / len(inputs) / 2
    schemas, wrong, sums = {}, 0, [0, 0]
    busy, began = time.process_time(), time.perf_counter()
    for given in inputs:
        decode, encode = make(given)
        decoded_per_s, events = _rate(decode, given["records"], each)
        encoded_per_s, records = _rate(encode, events, each)
        schemas[given["name"]] = {"decoded_per_s": decoded_per_s, "encoded_per_s": encoded_per_s}
        pairs = ((events, records), (given["events"], given["records"]))
        found, wanted = ([_hash(e, r) for e, r in zip(*pair, strict=True)] for pair in pairs)
        wrong += sum(f != w for f, w in zip(found, wanted, strict=True))
        sums = [s + sum(hashes) for s, hashes in zip(sums, (found, wanted), strict=True)]
    said = {
        "schemas": schemas,
        "wrong": wrong,
        "hash": f"{sums[0] % 2**64:016x}",
        "expected_hash": f"{sums[1] % 2**64:016x}",
        "cpu_share": (time.process_time() - busy) / (time.perf_counter() - began),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(said))


def peak_bytes():
    """Of this program alone; `getrusage` would tell what the one that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _hash(event, record):
    text = json.dumps(event, sort_keys=True, default=_plain).encode()
    return struct.unpack("<Q", hashlib.blake2b(text + record, digest_size=8).digest())[0]


if __name__ == "__main__":
    main({f.__name__: f for f in (millrace, fastavro, confluent, avro)}[sys.argv[1]])
