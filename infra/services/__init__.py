"""The broker and the databases behind one interface, whether Docker runs them or this machine itself.

`choose(settings)` gives the way; `up`, `down` and `status` are the same for both. Nothing above this
package knows which one it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from infra.settings import SettingError, Settings

Progress = Callable[[str], None]
"""Takes one line for the person who waits."""

State = Literal["running", "stopped", "failing"]


class ServiceError(RuntimeError):
    """A service that cannot be started or reached; the message names it, the reason and the remedy."""


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it stands: `failing` runs but does not answer, `detail` then says why."""

    name: str
    state: State
    address: str
    detail: str
    pid: int | None = None
    container: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


class Services(Protocol):
    """What both ways can do. All methods may block; they raise `ServiceError` with the remedy."""

    @property
    def kind(self) -> Literal["docker", "native"]:
        """Which way this is."""
        ...

    def up(self, progress: Progress) -> None:
        """Starts what does not run yet and returns when every service answers."""
        ...

    def down(self, purge: bool, progress: Progress) -> None:
        """Stops what `up` started; with `purge`, also deletes its data and secrets."""
        ...

    def status(self) -> list[ServiceStatus]:
        """Asks every service; never raises because one is down."""
        ...


def choose(settings: Settings) -> Services:
    """The way that MILLRACE_SERVICES names; with `auto`, Docker where its daemon answers, else native.

    An instance that holds native data, or is secured, stays native, also when a daemon appears later.
    """
    from infra.services.docker import DockerServices, daemon_answers
    from infra.services.native import NativeServices

    way = settings.text("services")
    native_data = settings.secure or (settings.home_path / "kafka").exists()
    if settings.secure and way == "docker":
        raise SettingError(
            "the secure profile is for native services, but MILLRACE_SERVICES='docker'; unset it, or leave"
            " out --secure (MILLRACE_SECURE)"
        )
    if way == "docker" or (way == "auto" and not native_data and daemon_answers()):
        return DockerServices(settings)
    if way in ("auto", "native"):
        return NativeServices(settings)
    raise SettingError(
        f"MILLRACE_SERVICES={way!r} is none of auto, docker, native; unset it or name one of these"
    )
