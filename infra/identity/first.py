"""What a new instance starts with: a signing key and, unless it is turned off, an admin with a key.

The admin's password and API key lie in the state folder's `secrets`, readable by their owner alone. Whoever
can read that folder owns the instance anyway: the database's own password lies beside them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from infra.identity import api_keys, refresh, subjects
from infra.identity.keyring import KeyRing
from infra.identity.subjects import NotAuthenticated
from infra.postgres import Connection, connect
from infra.services.credentials import ensure_secret, keep_secret
from infra.settings import SETTINGS, SettingError, Settings
from schemas.roles import ADMIN, EVERYWHERE, HOME_TENANT, ROLES

API_KEY = "api_key"
KEY_DAYS = 365
RENEWED = timedelta(days=30)
"""So long before its end the key is made anew, at the next `up`."""
EVERYTHING = tuple(f"{r.name}:{EVERYWHERE}" if r.by_domain else r.name for r in ROLES.values())


def ensure(settings: Settings) -> None:
    """Make what is missing; repeating it changes nothing. Raises `SettingError`."""
    ring = KeyRing(settings.signing_keys)
    if not ring.jwks()["keys"]:
        ring.add()
    wanted = settings.text("local_admin")
    if wanted not in ("on", "off"):
        raise SettingError(f"{SETTINGS['local_admin'].variable}={wanted!r} is neither on nor off; set one")
    with connect(settings.database_url, "millrace-identity") as connection:
        refresh.forget_expired(connection)
        if wanted == "on":
            _ensure_admin(settings, connection)


def forget_password(settings: Settings, subject: str) -> None:
    """Delete the password that the state folder holds of this subject, if any: there is a new one."""
    if subject == ADMIN:
        (settings.home_path / "secrets" / ADMIN).unlink(missing_ok=True)


def _ensure_admin(settings: Settings, connection: Connection) -> None:
    if ADMIN not in {subject.subject for subject in subjects.everyone(connection)}:
        password = ensure_secret(settings, ADMIN)
        subjects.create(connection, ADMIN, "person", HOME_TENANT, password, EVERYTHING)
    if subjects.find(connection, ADMIN).disabled_at is None and not _lasts(
        connection, settings.secret(API_KEY)
    ):
        key = api_keys.create(connection, ADMIN, "this instance's own clients", EVERYTHING, KEY_DAYS)
        keep_secret(settings, API_KEY, key)


def _lasts(connection: Connection, key: str) -> bool:
    try:
        prefix = api_keys.principal_of(connection, key).proof.partition(":")[2]
    except NotAuthenticated:
        return False
    (found,) = (k for k in api_keys.every(connection) if k.prefix == prefix)
    return found.expires_at > datetime.now(UTC) + RENEWED
