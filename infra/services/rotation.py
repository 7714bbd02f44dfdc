"""New passwords for the roles of the database while everything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg

from infra.postgres import Connection, connect, set_password
from infra.services import ServiceError
from infra.services.credentials import ensure_secret
from infra.settings import SETTINGS, Settings


@dataclass(frozen=True)
class Rotated:
    """A secret that is a role's password, and the setting that carries it to whoever connects."""

    role: str
    setting: str

    @property
    def variable(self) -> str:
        return SETTINGS[self.setting].variable


ROTATED: Mapping[str, Rotated] = {
    "postgres": Rotated("millrace", "database_url"),
    "reader": Rotated("millrace_reader", "database_reader_url"),
    "api": Rotated("millrace_api", "database_api_url"),
    "identity": Rotated("millrace_identity", "database_identity_url"),
    "gateway": Rotated("millrace_gateway", "database_gateway_url"),
    "sink": Rotated("millrace_sink", "database_sink_url"),
    "outward": Rotated("millrace_outward", "database_outward_url"),
    "audit": Rotated("millrace_audit", "database_audit_url"),
}


def known(name: str) -> Rotated:
    """What the secret `name` opens. Raises `ServiceError`."""
    try:
        return ROTATED[name]
    except KeyError:
        raise ServiceError(f"there is no secret {name!r} to rotate; there are {', '.join(ROTATED)}") from None


def rotate(settings: Settings, name: str) -> int:
    """Give the role a new password and end its sessions, which were opened with the old one.

    Returns how many there were. Processes of ours open theirs anew, with the password that is then in force.
    Repeating a call that was interrupted completes it. Raises `ServiceError`.
    """
    secret = known(name)
    if secret.variable in settings.environ:
        raise ServiceError(
            f"{secret.variable} is set, and with it the password; change it where that comes from, or unset"
            " it where it comes from `millrace env`"
        )
    if not settings.secret(name):
        raise ServiceError(f"there is no secret {name} yet; run `millrace up`")
    # Kept beside the one in force until the database has taken it.
    password = ensure_secret(settings, f"{name}.next")
    with _as_owner(settings, password if name == "postgres" else None) as connection:
        set_password(connection, secret.role, password)
        folder = settings.home_path / "secrets"
        (folder / f"{name}.next").replace(folder / name)
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE usename = %s AND pid <> pg_backend_pid()",
            (secret.role,),
        ).fetchone()
    return int(str(ended[0])) if ended else 0


def _as_owner(settings: Settings, newer: str | None) -> Connection:
    """A connection by the password in force, or by the `newer` one of a change that was interrupted."""
    parts = urlsplit(settings.database_url)
    address = parts.netloc.rpartition("@")[2]
    urls = [settings.database_url]
    if newer is not None:
        urls.append(parts._replace(netloc=f"{parts.username}:{newer}@{address}").geturl())
    reasons = []
    for url in urls:
        try:
            return connect(url, "millrace-secret")
        except psycopg.OperationalError as error:
            reasons.append(" ".join(str(error).split()))
    raise ServiceError(f"the database does not let us in: {reasons[0]}; look at `millrace status`")
