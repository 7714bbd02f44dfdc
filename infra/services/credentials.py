"""Secrets of one instance: made once, kept in `<home>/secrets/`, readable by their owner alone."""

from __future__ import annotations

import os
import secrets

from infra.settings import Settings


def ensure_secret(settings: Settings, name: str) -> str:
    """The secret `name`, generated at the first call; safe in a URL as it is."""
    folder = settings.home_path / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Mode and exclusiveness in one step: nobody reads it in between, and two first starts agree on one.
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return settings.secret(name)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(24) + "\n")
    return settings.secret(name)


def keep_secret(settings: Settings, name: str, value: str) -> None:
    """Let `value` be the secret `name` from now on; a reader finds the old or the new one, whole."""
    folder = settings.home_path / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f".{name}.part"
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value + "\n")
    part.replace(folder / name)
