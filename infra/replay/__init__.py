"""Replays: history read again through the current code, beside live traffic.

`places` says which records, `runs` keeps what is known of a run, `engine` reads and stages work, `live`
watches what must not suffer, `plan` looks ahead, `comparison` says what differs, `swap` puts it in force.
`work` joins these; the stages themselves are supplied by `streams.replay` and `sinks.replay`, and put
together in `infra.cli.replay`.
"""
