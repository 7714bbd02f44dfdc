"""What is done at the shell is told before it is done, and how it ended afterwards."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from infra.settings import Settings

if TYPE_CHECKING:
    from infra.audit.entry import Details, Outcome
    from infra.identity.principal import Principal

WRITTEN_WITHIN_S = 10.0
ACTION = "audited_as"
"""A told command's attribute that names its action."""
ACTING = "MILLRACE_ACTING"
"""In the environment of a command that a service starts for somebody: who that is."""

Command = TypeVar("Command", bound=Callable[..., Any])


def audited(action: str, untold: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Let a command that changes something be told with its arguments, all but `untold` (secrets, data); one
    that waits for `--apply` only where that is given."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def told(*arguments: Any, **named: Any) -> Any:
            if not named.get("apply", True):
                return command(*arguments, **named)
            with _operation(Settings.load(), action, _told(named, untold)):
                return command(*arguments, **named)

        setattr(told, ACTION, action)
        return told  # type: ignore[return-value]

    return decorate


@contextmanager
def _operation(settings: Settings, action: str, told: Details) -> Iterator[None]:
    # What these import takes a second, and the command line imports this module at every start.
    from infra.audit.log import AuditLog, ensure_key, open_heads
    from infra.services import ServiceError

    ensure_key(settings)
    # Before `up` there is no role for it; whoever is at the shell has the owner's address anyway.
    url = settings.database_audit_url if settings.secret("audit") else settings.database_url
    log = AuditLog(url, open_heads(settings), "command line")
    outcome: Outcome = "failed"
    who = _at_the_shell()
    try:
        log.record(who, action, "begins", "done", told)
        if not log.written(WRITTEN_WITHIN_S):
            raise ServiceError(
                f"the audit log cannot be written ({log.away or 'the database is slow'}), and nothing is done"
                " that it cannot tell of; look at `millrace status`"
            )
        try:
            yield
            outcome = "done"
        except BaseException as error:
            if getattr(error, "exit_code", 1) == 0:  # typer's way to end well
                outcome = "done"
            raise
        finally:
            log.record(who, action, "ends", outcome, told)
    finally:
        log.close()


def _told(named: Mapping[str, Any], untold: Sequence[str]) -> Details:
    # What a group of options stands for is told option by option.
    groups = [value for value in named.values() if isinstance(value, dict)]
    flat = {name: value for part in (named, *groups) for name, value in part.items()}
    return {
        name: value if isinstance(value, str | int | float) else str(value)
        for name, value in flat.items()
        if value not in (None, False) and name not in untold and not isinstance(value, dict)
    }


def acting_for(principal: Principal) -> dict[str, str]:
    """What is to stand in the environment of a command that is started for somebody."""
    who = {"subject": principal.subject, "tenant": principal.tenant, "proof": principal.proof}
    return {ACTING: json.dumps(who)}


def _at_the_shell() -> Principal:
    from infra.identity.principal import Principal

    # Whoever can write this into the environment is at the shell, which the proof says in any case.
    told = json.loads(os.environ.get(ACTING, "{}"))
    name, shell = f"os:{getpass.getuser()}", f"shell:{os.getuid()}@{socket.gethostname()}"
    proof = f"{told['proof']} by {shell}" if told else shell
    return Principal(told.get("subject", name), "person", told.get("tenant", ""), frozenset(), {}, proof)
