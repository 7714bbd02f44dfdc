"""How an instance becomes secured, stays so, and who each process is then."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.services import ServiceError, choose
from infra.services.kafka import Kafka
from infra.settings import SECURED, SettingError, Settings
from infra.supervisor import ProcessSpec, credentials


def instance(home: Path, **more: str) -> Settings:
    return Settings({"MILLRACE_HOME": str(home), **more})


def secured(home: Path, **more: str) -> Settings:
    """As after `up --secure`, with passwords of two principals."""
    (home / "secrets").mkdir()
    (home / "secrets" / SECURED).touch()
    for name in ("operator", "sink-fraud"):
        (home / "secrets" / f"kafka-{name}").write_text(f"password of {name}\n")
    return instance(home, **more)


def test_an_open_instance_has_no_names(tmp_path: Path) -> None:
    """Without the profile clients are made as ever, and processes get no credentials."""
    settings = instance(tmp_path)
    assert not settings.secure
    assert settings.kafka.config() == {"bootstrap.servers": "127.0.0.1:19092"}
    assert credentials(settings, ProcessSpec("sink", "fraud", "sinks")) == {}


def test_a_secured_instance_stays_so(tmp_path: Path) -> None:
    """The mark makes every later command know; no setting takes it back."""
    settings = secured(tmp_path)
    assert settings.secure
    config = settings.kafka.config()
    assert config["security.protocol"] == "SASL_SSL" and config["sasl.username"] == "operator"
    assert config["sasl.password"] == "password of operator"
    assert "password" not in repr(settings.kafka)
    with pytest.raises(SettingError, match="purge"):
        _ = instance(tmp_path, MILLRACE_SECURE="0").secure
    with pytest.raises(SettingError, match="neither 0 nor 1"):
        _ = instance(tmp_path, MILLRACE_SECURE="yes").secure
    with pytest.raises(SettingError, match="native"):
        choose(instance(tmp_path, MILLRACE_SERVICES="docker"))


def test_a_process_gets_its_own_credentials_alone(tmp_path: Path) -> None:
    """Each has its own name and password; one that the table does not name gets none, not the operator's."""
    settings = secured(tmp_path)
    assert credentials(settings, ProcessSpec("sink", "fraud", "sinks")) == {
        "MILLRACE_KAFKA_USER": "sink-fraud",
        "MILLRACE_KAFKA_PASSWORD": "password of sink-fraud",
    }
    registry = credentials(settings, ProcessSpec("registry", "all", "schemas.registry"))
    with pytest.raises(SettingError, match="no password"):
        _ = Settings({**settings.environ, **registry}).kafka


def test_what_the_api_does_for_an_operator_is_the_operators(tmp_path: Path) -> None:
    """The API itself is `api` to the broker; a command that it starts for somebody is the operator, unless
    the operator's password is not there to be read. An open instance, or a name of one's own, stays."""
    settings = secured(tmp_path)
    (tmp_path / "secrets" / "kafka-api").write_text("password of api\n")
    of_api = credentials(settings, ProcessSpec("api", "all", "api"))
    process = Settings({**settings.environ, **of_api})
    assert process.kafka.config()["sasl.username"] == "api"
    assert process.as_operator().kafka.config()["sasl.username"] == "operator"
    assert of_api.keys() & process.as_operator().environ.keys() == set()
    (tmp_path / "secrets" / "kafka-operator").unlink()
    with pytest.raises(SettingError, match="no password"):
        _ = process.as_operator().kafka
    named = Settings({"MILLRACE_HOME": str(tmp_path / "open"), **of_api})
    assert named.as_operator().kafka == named.kafka


def test_an_open_broker_is_not_taken_for_a_secured_one(tmp_path: Path) -> None:
    """`up --secure` over a broker that runs open is refused, with the way to get there."""
    with pytest.raises(ServiceError, match="millrace down"):
        Kafka(instance(tmp_path, MILLRACE_SECURE="1")).check_running()
    Kafka(secured(tmp_path)).check_running()
    Kafka(instance(tmp_path)).check_running()
