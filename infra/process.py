"""What every process of ours does around its work: logs, health, signals, and an exit code that says why."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

from infra import exit_codes
from infra.arrow import without_pandas
from infra.checkpoints import Fenced, PositionRefused
from infra.dead_letter_limit import OverLimit
from infra.secret_strength import refuse_weak
from infra.settings import SettingError, Settings
from infra.telemetry import logs
from infra.telemetry.health import Health, serve_if_asked

log = logging.getLogger(__name__)


def run(role: str, pipeline: str, main: Callable[[Settings, Health], None]) -> None:
    """Run `main` as a process of this role and exit. Never returns.

    Exit codes: 0 after a clean end, 3 fenced, 4 position refused, 5 over the dead letter limit (these: do
    not restart), 1 anything else. (6 is the watchdog's.)
    """
    without_pandas()
    settings = Settings.load()
    logs.configure(role, pipeline, settings.text("log_level"))
    health = Health("running")
    server = serve_if_asked(health, settings)
    code = 0
    try:
        refuse_weak(settings)
        main(settings, health)
    except (Fenced, PositionRefused, OverLimit) as error:
        log.critical(str(error), extra={"exit_code": error.exit_code})
        code = error.exit_code
    except SettingError as error:
        log.critical(str(error))
        code = exit_codes.DEFECT
    except Exception:
        log.critical("the process cannot go on", exc_info=True)
        code = exit_codes.DEFECT
    finally:
        if server is not None:
            server.close()
    logging.shutdown()
    if code:
        # Not through sys.exit: after a failure nothing may be flushed or committed by some finalizer.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(0)


def on_termination(call: Callable[[], None]) -> None:
    """Call `call` on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: call())
