"""Secrets that anybody would guess, or that anybody on the machine can read, stop a process at its start."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from infra.settings import SETTINGS, SettingError, Settings

LENGTH_MIN = 16
KINDS_MIN = 8
"""Different characters that a secret has at least."""
_KNOWN = (
    "admin", "changeit", "changeme", "default", "example", "guest", "letmein", "millrace", "password",
    "passw0rd", "postgres", "qwerty", "redis", "replaceme", "root", "secret", "test", "todo", "welcome",
)  # fmt: skip
"""A secret made of these, with digits and signs between and after them, is one that comes with a manual."""

MAKE_ONE = "openssl rand -base64 24"


def weakness(secret: str) -> str | None:
    """Why this is no secret, or None."""
    if len(secret) < LENGTH_MIN:
        return f"has {len(secret)} characters of at least {LENGTH_MIN}"
    if len(set(secret)) < KINDS_MIN:
        return f"has {len(set(secret))} different characters of at least {KINDS_MIN}"
    letters = rest = "".join(c for c in secret.lower() if c.isalpha() or c == "0")
    for known in sorted(_KNOWN, key=len, reverse=True):
        rest = rest.replace(known, "")
    if rest != letters and len(rest.strip("0")) < 4:
        return "is made of words that every attacker tries"
    return None


def refuse_weak(settings: Settings) -> None:
    """Raise `SettingError`, which names the variable or the file, where a secret is none. Never says it."""
    for where, secret in _passwords(settings):
        reason = weakness(secret) if secret else None
        if reason:
            raise SettingError(f"{where} {reason}; use another, as `{MAKE_ONE}` makes it")
    folder = settings.home_path / "secrets"
    for path in (folder, *sorted(folder.rglob("*"))) if folder.is_dir() else ():
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue  # renamed meanwhile: a rotation is under way
        if mode & 0o077:
            raise SettingError(
                f"{path} can be read by others than its owner; run `chmod -R go= {folder}`, and give what was"
                " in it another value if others use this machine"
            )


def _passwords(settings: Settings) -> Iterator[tuple[str, str]]:
    """Where each password comes from that somebody set by hand, and the password."""
    for setting in SETTINGS.values():
        value = settings.environ.get(setting.variable, "")
        if setting.variable.endswith("_URL") and "@" in value:
            yield f"the password in {setting.variable}", unquote(urlsplit(value).password or "")
    folder = settings.home_path / "secrets"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith("."):
            try:
                yield f"the secret in {path}", path.read_text().strip()
            except (FileNotFoundError, UnicodeDecodeError):
                continue
