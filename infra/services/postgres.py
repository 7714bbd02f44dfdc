"""PostgreSQL with PostGIS: a cluster of our own, never run by root."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from infra.services import ServiceError, probe
from infra.services.component import Component
from infra.services.credentials import ensure_secret
from infra.settings import PORT_POSTGRES

ROLE = "millrace"
ACCOUNT = "postgres"
ELSEWHERE = Path("/var/lib/millrace")
"""Where a cluster stands whose account cannot enter the state folder (a 0700 home, a temporary folder)."""

INSTALLED = Path("/usr/lib/postgresql")
EXTENSIONS = Path("/usr/share/postgresql")


class Postgres(Component):
    """One cluster with the role and the database `millrace`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": open sessions are ended; SIGTERM would wait for them

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.settings.port(PORT_POSTGRES),)

    def user(self) -> str | None:
        """Postgres refuses to run as root, so its package's account then owns the cluster."""
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(ACCOUNT).pw_name
        except KeyError:
            raise ServiceError(
                f"postgres does not run as root and the account {ACCOUNT!r} of its package is missing; "
                "run `make setup`"
            ) from None

    @cached_property
    def cluster(self) -> Path:
        """The folder of the cluster: in the state folder, unless its account cannot enter that."""
        elsewhere = ELSEWHERE / hashlib.sha256(str(self.settings.home_path).encode()).hexdigest()[:12]
        inside = self.folder / "data"
        if elsewhere.exists() or (not inside.exists() and not self._may_enter(self.settings.home_path)):
            return elsewhere
        return inside

    def prepare(self) -> None:
        password = ensure_secret(self.settings, "postgres")
        binaries = self.binaries()
        if not (self.cluster / "PG_VERSION").exists():
            self._initialise(binaries, password)

    def command(self) -> Sequence[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.ports[0]),
            # No socket file: its path would be too long (107 bytes) in a deep state folder.
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "checkpoint_timeout": "15min",
            "wal_compression": "on",
            "max_locks_per_transaction": "256",  # one per partition that a statement touches
            "jit": "off",  # compiling costs more than our short statements
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A dead letter's reason is read from COPY's message: it must be in English everywhere.
            "lc_messages": "C",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries() / "postgres"), "-D", str(self.cluster), *settings]

    def probe(self) -> str:
        return probe.postgres(self._url(ROLE))

    def answers(self) -> None:
        """The database `millrace` need not exist yet."""
        probe.select_one(self._url("postgres"))

    def complete(self) -> None:
        """Creates the database and its extension; the next `up` makes good an interrupted one."""
        import psycopg

        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (ROLE,)).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {ROLE}")
        with psycopg.connect(self._url(ROLE), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS postgis")

    def environ(self) -> Mapping[str, str] | None:
        # PG* variables of the calling shell would change the server; locale and PATH suffice.
        return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}

    def purge(self) -> None:
        cluster = self.cluster
        shutil.rmtree(cluster, ignore_errors=True)
        if cluster.parent == ELSEWHERE:
            try:
                ELSEWHERE.rmdir()
            except OSError:
                pass  # another instance's cluster is in it
        super().purge()

    def _url(self, database: str) -> str:
        return f"postgresql://{ROLE}:{self.settings.secret('postgres')}@{self.address()}/{database}"

    def _may_enter(self, folder: Path) -> bool:
        user = self.user()
        if user is None:
            return True
        account = pwd.getpwnam(user)
        return not subprocess.run(
            ["test", "-x", str(folder)], cwd="/", user=account.pw_uid, group=account.pw_gid, extra_groups=[]
        ).returncode

    def binaries(self) -> Path:
        """The programs of an existing cluster's version, otherwise of the newest that has PostGIS."""
        version_file = self.cluster / "PG_VERSION"
        if version_file.exists():
            wanted = version_file.read_text().strip()
            if (INSTALLED / wanted / "bin" / "postgres").exists():
                return INSTALLED / wanted / "bin"
            raise ServiceError(
                f"the cluster in {self.cluster} was made by PostgreSQL {wanted}, which is not installed; "
                f"run `apt-get install postgresql-{wanted}-postgis-3`, or `millrace down --purge` to lose it"
            )
        versions = sorted(
            (
                int(path.parent.name)
                for path in INSTALLED.glob("[1-9]*/bin")
                if (EXTENSIONS / path.parent.name / "extension" / "postgis.control").exists()
            ),
            reverse=True,
        )
        if not versions:
            raise ServiceError("PostgreSQL with PostGIS is not installed; run `make setup`")
        return INSTALLED / str(versions[0]) / "bin"

    def _initialise(self, binaries: Path, password: str) -> None:
        user = self.user()
        cluster = self.cluster
        parent = cluster.parent
        parent.mkdir(parents=True, exist_ok=True)
        parent.chmod(0o755)  # whatever our umask is, the cluster's account must get through
        # In a folder beside the final one: what an interruption leaves is never taken for a cluster.
        with tempfile.TemporaryDirectory(dir=parent, prefix="initdb-") as scratch:
            fresh = Path(scratch) / "data"
            password_file = Path(scratch) / "password"
            password_file.touch(mode=0o600)
            password_file.write_text(password)
            if user:
                for path in (Path(scratch), password_file):
                    shutil.chown(path, user)
            done = subprocess.run(
                [
                    str(binaries / "initdb"),
                    f"--pgdata={fresh}",
                    f"--username={ROLE}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                ],
                capture_output=True,
                text=True,
                cwd="/",
                env=self.environ(),
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
            if done.returncode:
                raise ServiceError(
                    f"postgres could not create its cluster in {cluster}: {' '.join(done.stderr.split())}; "
                    "free or repair that folder, then run `millrace up` again"
                )
            shutil.rmtree(cluster, ignore_errors=True)
            fresh.rename(cluster)
