"""Every setting in one list: attribute, environment variable, default and help together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from infra.kafka_access import KafkaAccess
from schemas.grants import OPERATOR

# Distances from MILLRACE_PORT_BASE. Two instances on one machine differ by their base alone.
PORT_API = 0
PORT_GATEWAY = 1
PORT_SUPERVISOR = 2
PORT_API_OWN = 10
PORT_GATEWAY_OWN = 20
"""Where each of several API processes, which share one port, is reached by itself; likewise of gateways."""
SHARING_MOST = 10
"""So many processes may share a port."""
PORT_POSTGRES = 32
PORT_REDIS = 79
PORT_REGISTRY = 81
PORT_MQTT = 83
PORT_PROMETHEUS = 90
PORT_GRAFANA = 91
PORT_KAFKA = 92
PORT_KAFKA_CONTROLLER = 93
PORT_KAFKA_INTERNAL = 94
PORT_METRICS_FIRST = 100
"""Each supervised process serves /metrics and /health on its own port from here upwards."""


SECURED = "kafka-secured"
"""Among the secrets, the mark of an instance whose broker wants names and passwords."""
AUTHORITY = "kafka-ca.pem"
"""Among the secrets, the certificate of who vouches for the broker."""


class SettingError(ValueError):
    """A setting that cannot be used; the message names variable, value and remedy."""


@dataclass(frozen=True)
class Setting:
    """One setting: its environment variable, its default (may derive from others) and its help."""

    variable: str
    default: Callable[[Settings], str]
    help: str


def _loopback(offset: int) -> Callable[[Settings], str]:
    return lambda s: f"127.0.0.1:{s.port(offset)}"


def _http(settings: Settings, offset: int) -> str:
    return f"{'https' if settings.text('tls_certificate') else 'http'}://{_loopback(offset)(settings)}"


SETTINGS: dict[str, Setting] = {
    "home": Setting("MILLRACE_HOME", lambda s: ".millrace", "State folder of this instance."),
    "port_base": Setting(
        "MILLRACE_PORT_BASE", lambda s: "19000", "First of the 200 ports this instance uses."
    ),
    "services": Setting(
        "MILLRACE_SERVICES",
        lambda s: "auto",
        "How services run: docker, native, or auto (docker where a daemon answers).",
    ),
    "docker_services": Setting(
        "MILLRACE_DOCKER_SERVICES",
        lambda s: "kafka registry postgres redis mosquitto prometheus grafana",
        "Which services of docker-compose.yml run with Docker; prometheus and grafana may be left out.",
    ),
    "cache": Setting(
        "MILLRACE_CACHE",
        lambda s: str(Path(__file__).parents[1] / ".millrace" / "cache"),
        "Folder of what `make setup` resolved; shared by all instances of a checkout.",
    ),
    "kafka_jvm": Setting(
        "MILLRACE_KAFKA_JVM",
        lambda s: "-Xms256m -Xmx768m -XX:+UseG1GC -XX:MaxGCPauseMillis=20",
        "JVM options of the native broker: heap and collector.",
    ),
    "secure": Setting(
        "MILLRACE_SECURE",
        lambda s: "1" if s.secret_path(SECURED).exists() else "0",
        "1: the native broker speaks TLS alone and knows each client by name and password, as after"
        " `millrace up --secure`; from then on the default.",
    ),
    "kafka_user": Setting(
        "MILLRACE_KAFKA_USER",
        lambda s: OPERATOR if s.secure else "",
        "Name at the broker (SASL_SSL, SCRAM-SHA-512); empty: plain text, without a name.",
    ),
    "kafka_password": Setting(
        "MILLRACE_KAFKA_PASSWORD",
        lambda s: s.secret(f"kafka-{s.text('kafka_user')}"),
        "Password of that name.",
    ),
    "kafka_ca": Setting(
        "MILLRACE_KAFKA_CA",
        lambda s: str(s.secret_path(AUTHORITY)) if s.secure else "",
        "PEM file of who vouches for the broker; empty: those that this machine trusts.",
    ),
    "kafka_bootstrap_servers": Setting(
        "KAFKA_BOOTSTRAP_SERVERS", _loopback(PORT_KAFKA), "Broker addresses, host:port, comma separated."
    ),
    "schema_registry_url": Setting(
        "SCHEMA_REGISTRY_URL",
        lambda s: "http://" + _loopback(PORT_REGISTRY)(s),
        "Confluent-compatible registry.",
    ),
    "database_url": Setting(
        "DATABASE_URL",
        lambda s: f"postgresql://millrace:{s.secret('postgres')}@{_loopback(PORT_POSTGRES)(s)}/millrace",
        "Postgres with PostGIS; the owner's role.",
    ),
    "redis_url": Setting("REDIS_URL", lambda s: f"redis://{_loopback(PORT_REDIS)(s)}/0", "Redis."),
    "mqtt_url": Setting("MQTT_URL", lambda s: f"mqtt://{_loopback(PORT_MQTT)(s)}", "MQTT broker."),
    "api_url": Setting("API_URL", lambda s: _http(s, PORT_API), "Where the query API listens."),
    "gateway_url": Setting(
        "GATEWAY_URL", lambda s: _http(s, PORT_GATEWAY), "Where the HTTP gateway listens."
    ),
    "api_processes": Setting(
        "MILLRACE_API_PROCESSES",
        lambda s: "1",
        "How many processes (up to 10) answer at API_URL: connections are dealt out among them.",
    ),
    "gateway_processes": Setting(
        "MILLRACE_GATEWAY_PROCESSES", lambda s: "1", "How many processes (up to 10) answer at GATEWAY_URL."
    ),
    "database_reader_url": Setting(
        "DATABASE_READER_URL",
        lambda s: s.as_reader(s.database_url),
        "Postgres for those who run the instance: role millrace_reader, which reads every tenant's rows.",
    ),
    "database_api_url": Setting(
        "DATABASE_API_URL",
        lambda s: s.as_role("api", s.database_url),
        "Postgres as the API reads it: role millrace_api, which sees the rows of one tenant at a time.",
    ),
    "database_identity_url": Setting(
        "DATABASE_IDENTITY_URL",
        lambda s: s.as_role("identity", s.database_url),
        "Postgres as logins use it: role millrace_identity, subjects and their proofs alone.",
    ),
    "database_gateway_url": Setting(
        "DATABASE_GATEWAY_URL",
        lambda s: s.as_role("gateway", s.database_url),
        "Postgres as the gateway asks who is there: role millrace_gateway, which may read grants alone.",
    ),
    "database_sink_url": Setting(
        "DATABASE_SINK_URL",
        lambda s: s.as_role("sink", s.database_url) if s.secret("sink") else s.database_url,
        "Postgres as sinks write it: role millrace_sink, sink tables and positions alone, of all tenants.",
    ),
    "database_outward_url": Setting(
        "DATABASE_OUTWARD_URL",
        lambda s: s.as_role("outward", s.database_url),
        "Postgres as webhooks and mails are delivered from it: role millrace_outward, outbox and deliveries.",
    ),
    "database_audit_url": Setting(
        "DATABASE_AUDIT_URL",
        lambda s: s.as_role("audit", s.database_url),
        "Postgres as the audit log is written: role millrace_audit, which may only append.",
    ),
    "signing_keys": Setting(
        "MILLRACE_SIGNING_KEYS",
        lambda s: str(s.home_path / "secrets" / "signing"),
        "Folder of the keys that access tokens are signed with.",
    ),
    "token_issuer": Setting(
        "MILLRACE_TOKEN_ISSUER", lambda s: s.api_url, "Who issues our access tokens (claim iss)."
    ),
    "token_audience": Setting(
        "MILLRACE_TOKEN_AUDIENCE", lambda s: "millrace", "Whom our access tokens are for (claim aud)."
    ),
    "local_admin": Setting(
        "MILLRACE_LOCAL_ADMIN",
        lambda s: "on",
        "Whether `up` makes the subject `admin`, who may do everything, with a password and an API key that"
        " are kept in the state folder: on, or off where `millrace users add` makes the first one.",
    ),
    "api_key": Setting(
        "MILLRACE_API_KEY",
        lambda s: s.secret("api_key"),
        "API key that this instance's own clients (demo, benchmarks) send.",
    ),
    "audit_keys": Setting(
        "MILLRACE_AUDIT_KEYS",
        lambda s: str(s.home_path / "secrets" / "audit-keys"),
        "Folder of the keys that the audit log's heads are signed with; old ones stay, to verify old heads.",
    ),
    "audit_heads": Setting(
        "MILLRACE_AUDIT_HEADS",
        lambda s: str(s.home_path / "audit" / "heads.jsonl"),
        "File of the audit log's signed heads; best on another machine's disk than the database.",
    ),
    "publish_timeout_ms": Setting(
        "MILLRACE_PUBLISH_TIMEOUT_MS",
        lambda s: "10000",
        "How long a connector waits for the broker's acknowledgement before it answers 503.",
    ),
    "decision_wait_ms": Setting(
        "MILLRACE_DECISION_WAIT_MS",
        lambda s: "1000",
        "How long the gateway waits for a transaction's decision before it answers 202 with a link to it.",
    ),
    "max_json_bytes": Setting(
        "MILLRACE_MAX_JSON_BYTES", lambda s: "1048576", "Largest request body that the gateway accepts."
    ),
    "max_upload_bytes": Setting(
        "MILLRACE_MAX_UPLOAD_BYTES",
        lambda s: "67108864",
        "Largest upload (multipart, DICOM) that the gateway accepts.",
    ),
    "request_s": Setting(
        "MILLRACE_REQUEST_S",
        lambda s: "60",
        "Seconds that a request may take to send its body, and again to be answered.",
    ),
    "max_under_way": Setting(
        "MILLRACE_MAX_UNDER_WAY",
        lambda s: "512",
        "Requests that an HTTP service works on at the same time; those beyond are answered 503.",
    ),
    "limits": Setting(
        "MILLRACE_LIMITS",
        lambda s: "",
        "Other rates than infra/limits/rates.py has, as `read=500/s login=5/m:20` (:20 of them at once).",
    ),
    "cors_origins": Setting(
        "MILLRACE_CORS_ORIGINS",
        lambda s: "",
        "Origins whose pages may read answers, separated by blanks, as https://console.example; empty: none.",
    ),
    "console_hosts": Setting(
        "MILLRACE_CONSOLE_HOSTS",
        lambda s: f"{urlsplit(s.api_url).hostname} localhost 127.0.0.1 ::1",
        "Names by which browsers may reach the console, separated by blanks; under another it answers nobody:"
        " a page elsewhere may have its name resolve to this machine.",
    ),
    "trusted_proxies": Setting(
        "MILLRACE_TRUSTED_PROXIES",
        lambda s: "",
        "Addresses whose X-Forwarded-For and -Proto are believed, separated by commas; empty: nobody's.",
    ),
    "tls_certificate": Setting(
        "MILLRACE_TLS_CERTIFICATE",
        lambda s: "",
        "PEM file of the certificate, and of those above it, that the HTTP services show; empty: plain HTTP.",
    ),
    "tls_key": Setting("MILLRACE_TLS_KEY", lambda s: "", "PEM file of the certificate's key."),
    "metrics_port": Setting(
        "MILLRACE_METRICS_PORT",
        lambda s: "",
        "Port of /metrics and /health of a process that is no HTTP service, or one of several that share its"
        " port; unset: none.",
    ),
    "object_store": Setting(
        "MILLRACE_OBJECT_STORE",
        lambda s: str(s.home_path / "objects"),
        "Folder of the content-addressed store.",
    ),
    "log_level": Setting("MILLRACE_LOG_LEVEL", lambda s: "INFO", "Least severity that is logged."),
    "checkpoint_interval_ms": Setting(
        "MILLRACE_CHECKPOINT_INTERVAL_MS",
        lambda s: "500",
        "How often a busy processor checkpoints its state.",
    ),
    "instance": Setting(
        "MILLRACE_INSTANCE",
        lambda s: "0",
        "Tells the workers of one processor or sink apart; unique among them.",
    ),
    "dead_letter_limit_pct": Setting(
        "MILLRACE_DEAD_LETTER_LIMIT_PCT",
        lambda s: "50",
        "A processor or sink stops once more than this share (per cent) of its last 1000 records became dead"
        " letters; 100: never.",
    ),
    "watchdog_s": Setting(
        "MILLRACE_WATCHDOG_S",
        lambda s: "150",
        "A processor or sink ends, to be started again, when a position has stood still for so many seconds"
        " while its lag grew; 0: never. Longer than a batch may take (120 s).",
    ),
    "ledger_keys": Setting(
        "MILLRACE_LEDGER_KEYS",
        lambda s: str(s.home_path / "secrets" / "ledger-keys"),
        "Folder of the keys that the ledger's heads are signed with; old ones stay, to verify old heads.",
    ),
    "ledger_heads": Setting(
        "MILLRACE_LEDGER_HEADS",
        lambda s: str(s.home_path / "ledger" / "heads.jsonl"),
        "File of the ledger's signed heads; best on another machine's disk than the database.",
    ),
    "webhook_allow": Setting(
        "MILLRACE_WEBHOOK_ALLOW",
        lambda s: "",
        "Networks, comma separated (as 10.1.0.0/16), that webhooks may go to although they are not public;"
        " only these may be reached without TLS.",
    ),
    "webhook_timeout_ms": Setting(
        "MILLRACE_WEBHOOK_TIMEOUT_MS", lambda s: "15000", "All that one attempt to deliver may take."
    ),
    "webhook_retry_ms": Setting(
        "MILLRACE_WEBHOOK_RETRY_MS",
        lambda s: "5000",
        "Wait after a first failed attempt; each next one doubles it.",
    ),
    "webhook_retry_most_ms": Setting(
        "MILLRACE_WEBHOOK_RETRY_MOST_MS", lambda s: "3600000", "Longest wait between two attempts."
    ),
    "webhook_disable_after_s": Setting(
        "MILLRACE_WEBHOOK_DISABLE_AFTER_S",
        lambda s: "432000",
        "An endpoint is disabled when a delivery has failed for so long.",
    ),
    "webhook_lanes": Setting(
        "MILLRACE_WEBHOOK_LANES",
        lambda s: "64",
        "Most lanes (endpoint and merchant) that one process works on.",
    ),
    "outbox_days": Setting(
        "MILLRACE_OUTBOX_DAYS",
        lambda s: "30",
        "How long outbox and deliveries are kept for replays and missed events.",
    ),
    "smtp_url": Setting(
        "MILLRACE_SMTP_URL",
        lambda s: "",
        "Mail server for alerts: smtp://[user:password@]host:port, with ?starttls=1, or smtps://…"
        " Unset: none.",
    ),
    "smtp_from": Setting("MILLRACE_SMTP_FROM", lambda s: "millrace@localhost", "Sender of alerts by mail."),
    "mail_every_s": Setting(
        "MILLRACE_MAIL_EVERY_S", lambda s: "60", "A mailbox gets at most one mail in so many seconds."
    ),
    "batch_records": Setting("MILLRACE_BATCH_RECORDS", lambda s: "4096", "Most records in one batch."),
}


@dataclass(frozen=True)
class Settings:
    """The settings of one instance, read from an environment.

    Attributes are the names in `SETTINGS`; text unless a property below gives another form.
    """

    environ: Mapping[str, str]

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process."""
        return cls(dict(os.environ))

    def text(self, name: str) -> str:
        """The value of the setting `name`: its variable if set and not empty, otherwise its default."""
        setting = SETTINGS[name]
        return self.environ.get(setting.variable) or setting.default(self)

    def number(self, name: str) -> int:
        """As `text`, for a whole number; raises `SettingError` otherwise."""
        value = self.text(name)
        try:
            return int(value)
        except ValueError:
            raise SettingError(
                f"{SETTINGS[name].variable}={value!r} is not a whole number; unset it or set for example "
                f"{SETTINGS[name].variable}={SETTINGS[name].default(self)}"
            ) from None

    @cached_property
    def home_path(self) -> Path:
        """The state folder, absolute."""
        return Path(self.text("home")).absolute()

    @property
    def prometheus_targets(self) -> Path:
        """The folder of files that tell Prometheus who serves /metrics."""
        return self.home_path / "prometheus"

    def port(self, offset: int) -> int:
        """The port at `offset` from this instance's base."""
        return self.number("port_base") + offset

    def http_ports(self, service: str) -> tuple[int, ...]:
        """Where each process of `api` or `gateway` is reached by itself: at the service's port, or where
        several share that, at ports of their own. Raises `SettingError`."""
        processes = self.number(f"{service}_processes")
        if not 1 <= processes <= SHARING_MOST:
            variable = SETTINGS[f"{service}_processes"].variable
            raise SettingError(f"{variable} is {processes}; give 1 to {SHARING_MOST}")
        if processes == 1:
            return (urlsplit(self.text(f"{service}_url")).port or 80,)
        first = PORT_API_OWN if service == "api" else PORT_GATEWAY_OWN
        return tuple(self.port(first + n) for n in range(processes))

    def secret_path(self, name: str) -> Path:
        """The file of a secret."""
        return self.home_path / "secrets" / name

    def secret(self, name: str) -> str:
        """A secret that `millrace up` generated into `<home>/secrets/<name>`; empty before."""
        path = self.secret_path(name)
        return path.read_text().strip() if path.exists() else ""

    @property
    def secure(self) -> bool:
        """Whether the broker is run by the `secure` profile. Raises `SettingError`: no instance leaves it."""
        wanted = self.text("secure")
        if wanted not in ("0", "1"):
            raise SettingError(f"MILLRACE_SECURE={wanted!r} is neither 0 nor 1; unset it or set one of these")
        if wanted == "0" and self.secret_path(SECURED).exists():
            raise SettingError(
                f"MILLRACE_SECURE=0, but the instance in {self.home_path} is secured; unset it, or delete the"
                " instance with `millrace down --purge`"
            )
        return wanted == "1"

    @property
    def kafka(self) -> KafkaAccess:
        """The broker, and who this process is to it."""
        servers, user, authority = (
            self.kafka_bootstrap_servers,
            self.text("kafka_user"),
            self.text("kafka_ca"),
        )
        if not user:
            return KafkaAccess(servers)
        password, authority = self.text("kafka_password"), self.text("kafka_ca")
        if not password:
            raise SettingError(
                f"MILLRACE_KAFKA_USER={user!r} has no password; set MILLRACE_KAFKA_PASSWORD,"
                " or run `millrace up`"
            )
        return KafkaAccess.as_user(servers, user, password, Path(authority) if authority else None)

    def as_operator(self) -> Settings:
        """The same instance, and to its secured broker whoever uses the command line: for what the API does
        for an operator. Who may not read the operator's password gets none, and `kafka` then says so."""
        own = {SETTINGS[name].variable for name in ("kafka_user", "kafka_password")} if self.secure else set()
        return Settings({name: value for name, value in self.environ.items() if name not in own})

    def as_reader(self, database_url: str) -> str:
        """The same database for role millrace_reader; the owner's address before `up` made its password."""
        password, parts = self.secret("reader"), urlsplit(database_url)
        if not password or not parts.hostname:
            return database_url
        address = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"millrace_reader:{password}@{address}").geturl()

    def as_role(self, name: str, database_url: str) -> str:
        """The same database for role `millrace_<name>`, whose password is the secret `name`.

        Never the owner's address: before `up` made the password, nobody gets in by it.
        """
        parts = urlsplit(database_url)
        address = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"millrace_{name}:{self.secret(name)}@{address}").geturl()

    @property
    def client_headers(self) -> dict[str, str]:
        """What a client of this instance's own sends with each request to API and gateway."""
        key = self.text("api_key")
        return {"Authorization": f"Bearer {key}"} if key else {}

    @property
    def kafka_bootstrap_servers(self) -> str:
        return self.text("kafka_bootstrap_servers")

    @property
    def schema_registry_url(self) -> str:
        return self.text("schema_registry_url")

    @property
    def database_url(self) -> str:
        return self.text("database_url")

    @property
    def database_reader_url(self) -> str:
        return self.text("database_reader_url")

    @property
    def database_api_url(self) -> str:
        return self.text("database_api_url")

    @property
    def database_identity_url(self) -> str:
        return self.text("database_identity_url")

    @property
    def database_gateway_url(self) -> str:
        return self.text("database_gateway_url")

    @property
    def database_sink_url(self) -> str:
        return self.text("database_sink_url")

    @property
    def database_outward_url(self) -> str:
        return self.text("database_outward_url")

    @property
    def signing_keys(self) -> Path:
        return Path(self.text("signing_keys"))

    @property
    def database_audit_url(self) -> str:
        return self.text("database_audit_url")

    @property
    def audit_keys(self) -> Path:
        return Path(self.text("audit_keys"))

    @property
    def audit_heads(self) -> Path:
        return Path(self.text("audit_heads"))

    @property
    def ledger_keys(self) -> Path:
        return Path(self.text("ledger_keys"))

    @property
    def ledger_heads(self) -> Path:
        return Path(self.text("ledger_heads"))

    @property
    def redis_url(self) -> str:
        return self.text("redis_url")

    @property
    def mqtt_url(self) -> str:
        return self.text("mqtt_url")

    @property
    def api_url(self) -> str:
        return self.text("api_url")

    @property
    def gateway_url(self) -> str:
        return self.text("gateway_url")

    @property
    def object_store(self) -> Path:
        return Path(self.text("object_store"))
