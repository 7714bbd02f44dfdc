"""The command line as a program of its own, on an instance that does not run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from infra.services import choose
from infra.services.credentials import ensure_secret
from infra.services.docker import COMPOSE_FILE, CONTAINERS
from infra.settings import SettingError, Settings

MILLRACE = [sys.executable, "-m", "infra.cli"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An instance that was never started."""
    base = str(int(os.environ["MILLRACE_PORT_BASE"]) + 1000)
    return {
        **os.environ,
        "MILLRACE_HOME": str(tmp_path),
        "MILLRACE_PORT_BASE": base,
        "MILLRACE_SERVICES": "native",
    }


def millrace(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one command."""
    return subprocess.run([*MILLRACE, *arguments], env=environ, capture_output=True, text=True, timeout=60)


def test_help_lists_the_commands(environ: dict[str, str]) -> None:
    """`millrace --help` names every command of this layer."""
    shown = millrace(environ, "--help").stdout
    assert {"up", "down", "status", "env", "doctor"} <= set(shown.split())


def test_no_command_waits_for_the_imports_of_others(environ: dict[str, str]) -> None:
    """Building the command line imports no broker, database or web library."""
    script = "import sys; from infra.cli import build; build(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    heavy = {
        "confluent_kafka",
        "psycopg",
        "asyncpg",
        "redis",
        "faust",
        "fastapi",
        "pandas",
        "sklearn",
        "httpx",
    }
    assert heavy & set(done.stdout.split()) == set()


def test_env_is_what_a_shell_can_evaluate(environ: dict[str, str]) -> None:
    """`eval "$(millrace env)"` sets the same values as `millrace env --json` prints."""
    ensure_secret(Settings(environ), "postgres")
    listed = json.loads(millrace(environ, "env", "--json").stdout)
    assert listed["DATABASE_URL"] == Settings(environ).database_url
    assert set(listed) == {
        "KAFKA_BOOTSTRAP_SERVERS",
        "SCHEMA_REGISTRY_URL",
        "DATABASE_URL",
        "DATABASE_READER_URL",
        "REDIS_URL",
        "MQTT_URL",
        "API_URL",
        "GATEWAY_URL",
        "MILLRACE_API_KEY",
    }
    script = f'eval "$({shlex.join(MILLRACE)} env)"; exec {shlex.quote(sys.executable)} -c '
    script += shlex.quote("import json, os; print(json.dumps(dict(os.environ)))")
    shell = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert listed.items() <= json.loads(shell.stdout).items()


def test_env_without_a_password_says_so(environ: dict[str, str]) -> None:
    """Before the first `up`, `env` says on standard error what the database URL lacks."""
    done = millrace(environ, "env")
    assert done.returncode == 0
    assert "run `millrace up`" in done.stderr


def test_doctor_of_a_stopped_instance_names_the_repairs(environ: dict[str, str]) -> None:
    """On a stopped instance the doctor exits 1, and each failed check says how to repair it."""
    done = millrace(environ, "doctor", "--json")
    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout)
    failed = {check["name"] for check in checks if not check["ok"]}
    asked = {"broker", "advertised listener", "registry", "database", "redis", "mqtt", "positions", "clock"}
    assert failed == asked
    assert {"python", "versions", "java", "broker jars", "postgres programs", "disk"} <= {
        check["name"] for check in checks if check["ok"]
    }
    assert all(
        check["found"] and check["expected"] and check["repair"] for check in checks if not check["ok"]
    )
    shown = millrace(environ, "doctor")
    assert shown.returncode == 1
    assert "repair:   `millrace up`" in shown.stdout


def test_status_of_a_stopped_instance(environ: dict[str, str]) -> None:
    """`status` of a stopped instance lists every service as stopped and exits 1."""
    done = millrace(environ, "status", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert shown["kind"] == "native"
    assert {one["name"]: one["state"] for one in shown["services"]} == dict.fromkeys(
        ("kafka", "postgres", "redis", "mosquitto"), "stopped"
    )
    assert millrace(environ, "status").stdout.count("not running") == 4


def test_down_of_a_stopped_instance_does_nothing(environ: dict[str, str]) -> None:
    """`down` where nothing runs succeeds and says nothing."""
    done = millrace(environ, "down")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_wrong_setting_is_one_sentence(environ: dict[str, str]) -> None:
    """A wrong setting is told in one line that names the variable and the remedy, without a traceback."""
    done = millrace({**environ, "MILLRACE_PORT_BASE": "many"}, "status")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "MILLRACE_PORT_BASE='many'" in done.stderr
    with pytest.raises(SettingError, match="none of auto, docker, native"):
        choose(Settings({**environ, "MILLRACE_SERVICES": "podman"}))


def test_compose_binds_loopback_only_and_every_image_is_replaceable() -> None:
    """Each port is bound to 127.0.0.1 from a variable, and each image has a variable and a default."""
    lines = [line.strip() for line in COMPOSE_FILE.read_text().splitlines()]
    ports = [line for line in lines if line.startswith("ports:")]
    images = [line for line in lines if line.startswith("image:")]
    assert ports and all(line.startswith('ports: ["127.0.0.1:${') for line in ports)
    assert len(images) == len(CONTAINERS)
    assert all(line.startswith("image: ${") and ":-" in line for line in images)
    for variable, _, _ in CONTAINERS.values():
        assert f"${{{variable}:-" in COMPOSE_FILE.read_text()


def test_up_on_running_services_is_done_at_once(services: Settings) -> None:
    """`up` on the running session instance starts no service anew; `status` says that no process runs."""
    before = millrace(dict(services.environ), "status", "--json")
    assert before.returncode == 1 and "the processes do not run" in before.stderr
    assert {s["state"] for s in json.loads(before.stdout)["services"]} == {"running"}
    done = millrace(dict(services.environ), "up", "--services-only")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and "services are up" in done.stderr
    after = millrace(dict(services.environ), "status", "--json")
    assert json.loads(after.stdout) == json.loads(before.stdout)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "nothing"], "no pipeline 'nothing'; there are: fraud, fleet, orders, imaging"),
        (["verify", "--from", "yesterday"], "is no time; write 2h, 7d, 2026-03-01"),
        (["trace"], "give either --row TABLE:KEY or --record TOPIC/PARTITION/OFFSET"),
        (["trace", "--row", "a:b", "--record", "a/0/1"], "give either --row TABLE:KEY"),
        (["trace", "--row", "card_ledger:e1"], "the database does not answer"),
        (["keys", "list"], "the database does not answer"),
        (["rules", "list"], "the database does not answer"),
        (["replay", "list"], "the database does not answer"),
    ],
)
def test_commands_say_what_is_wrong(environ: dict[str, str], arguments: list[str], sentence: str) -> None:
    """What cannot be meant, or a database that is away, is said in a sentence and without a traceback."""
    done = millrace({**environ, "COLUMNS": "200"}, *arguments)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
