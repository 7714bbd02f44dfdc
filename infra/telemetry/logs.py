"""Structured logs: one JSON object a line on stderr. Normal operation logs nothing per record.

Give what belongs to a line as `extra`: `extra={"topic": "card-transactions", "partition": 3, "offset": 7}`.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """Formats a record as one line: time, level, logger, message, role, pipeline, pid, then its extras.

    An exception is one field, `exception`, with the whole stack.
    """

    def __init__(self, role: str, pipeline: str | None) -> None:
        super().__init__()
        self._role = role
        self._pipeline = pipeline

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "role": self._role,
            "pipeline": self._pipeline,
            "pid": record.process,
        }
        for name, value in vars(record).items():
            if name not in _OWN and name not in line:
                line[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
        except orjson.JSONEncodeError:
            # A lone surrogate or a number beyond 64 bits must not cost the line.
            return json.dumps(line, default=repr, skipkeys=True)


def configure(role: str, pipeline: str | None = None, level: str = "INFO") -> None:
    """Send every log of this process to stderr as JSON lines, uncaught exceptions and warnings too.

    `role` is connector, processor, sink, api, registry or supervisor; `pipeline` its domain, if it has one.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8")  # what another encoding escapes is not JSON
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role, pipeline))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpx2"):  # they log every request at INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("millrace").critical("uncaught exception", exc_info=(kind, error, stack))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None:
        return
    name = args.thread.name if args.thread else None
    logging.getLogger("millrace").critical(
        "uncaught exception in a thread",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        extra={"thread_name": name},
    )
