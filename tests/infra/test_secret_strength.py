"""Secrets that are none stop a process at its start, and the message says which and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.secret_strength import refuse_weak, weakness
from infra.services.credentials import ensure_secret
from infra.settings import SettingError, Settings
from infra.signed_requests import SECRET, signing_secret

GOOD = "Vq3-xNf8_pLw2Zt7"


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("short", "at least 16"),
        ("aaaaaaaaaaaaaaaaaaaaaaaa", "different characters"),
        ("password-changeme-123", "every attacker tries"),
        ("postgres_MILLRACE_2026", "every attacker tries"),
        ("Passw0rd!Passw0rd!", "every attacker tries"),
        ("default-secret-1234567", "every attacker tries"),
    ],
)
def test_what_anybody_would_guess_is_weak(secret: str, reason: str) -> None:
    """Short, monotonous and well-known secrets are told apart from others, with the reason."""
    assert reason in (weakness(secret) or "")


@pytest.mark.parametrize(
    "secret", [GOOD, "correct horse battery staple", "8342 9917 0265 4471", "f3a9" * 3 + "d7c21b80"]
)
def test_what_nobody_guesses_is_not(secret: str) -> None:
    """Random characters, words and numbers are taken."""
    assert weakness(secret) is None


def test_our_own_secrets_are_strong(tmp_path: Path) -> None:
    """What `up` generates, and what is derived from it, is never refused."""
    settings = Settings({"MILLRACE_HOME": str(tmp_path)})
    for n in range(200):
        assert weakness(ensure_secret(settings, f"{n}")) is None
    assert weakness(signing_secret(ensure_secret(settings, SECRET), "abcdefghij01")) is None
    refuse_weak(settings)


def test_a_weak_password_in_a_url_is_refused(tmp_path: Path) -> None:
    """The message names the variable and the remedy, and never the secret; no password is no weak one."""
    home = {"MILLRACE_HOME": str(tmp_path)}
    for variable in ("DATABASE_URL", "REDIS_URL", "MQTT_URL", "DATABASE_AUDIT_URL"):
        with pytest.raises(SettingError, match=f"{variable} has 8 .*openssl rand") as error:
            refuse_weak(Settings({**home, variable: "postgresql://user:hunter22@db/x"}))
        assert "hunter22" not in str(error.value)
        refuse_weak(Settings({**home, variable: f"postgresql://user:{GOOD}@db/x"}))
        refuse_weak(Settings({**home, variable: "postgresql://user@db/x"}))


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Folder and files are their owner's alone, or the process does not start; a weak file is refused too."""
    settings = Settings({"MILLRACE_HOME": str(tmp_path)})
    ensure_secret(settings, "postgres")
    folder = tmp_path / "secrets"
    (folder / "signing").mkdir(mode=0o700)
    key = folder / "signing" / "1.pem"
    key.touch(mode=0o600)
    for path, mode in ((folder, 0o700), (folder / "postgres", 0o600), (key, 0o600)):
        path.chmod(mode | 0o040)
        with pytest.raises(SettingError, match=r"can be read by others.*chmod"):
            refuse_weak(settings)
        path.chmod(mode)
    refuse_weak(settings)
    (folder / "postgres").write_text("millrace\n")
    with pytest.raises(SettingError, match="postgres has 8 characters"):
        refuse_weak(settings)


def test_a_process_says_so_and_ends(tmp_path: Path) -> None:
    """The API with a weak password ends with exit code 1 and one line that says why."""
    environ = {
        **os.environ,
        "MILLRACE_HOME": str(tmp_path),
        "DATABASE_URL": "postgresql://millrace:millrace@127.0.0.1:1/x",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "api"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "the password in DATABASE_URL has 8 characters" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
