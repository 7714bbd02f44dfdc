"""Our own semgrep rules find what they are for, and leave alone what looks like it."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

SEMGREP = Path(__file__).parents[2] / ".venv-scan" / "bin" / "semgrep"
RULES = Path(__file__).parents[2] / "infra" / "semgrep.yml"

FOUND: dict[str, tuple[str, str]] = {
    "sql-from-values": (
        "api/a.py",
        'async def f(db, name):\n    await db.fetch(f"SELECT * FROM t WHERE n = {name}")\n',
    ),
    "router-without-scope": ("api/b.py", "import fastapi\nrouter = fastapi.APIRouter()\n"),
    "credentials-read-elsewhere": (
        "api/c.py",
        'def f(request):\n    return request.headers.get("Authorization")\n',
    ),
    "forwarded-address-believed": (
        "infra/d.py",
        'def f(request):\n    return request.headers["X-Forwarded-For"]\n',
    ),
    "secret-compared-in-the-open": (
        "infra/e.py",
        "def f(proof, signature):\n    return proof.signature == signature\n",
    ),
    "token-verified-by-its-own-words": (
        "infra/f.py",
        "import jwt\ndef f(token, key):\n    return jwt.decode(token, key)\n",
    ),
    "secret-logged": (
        "infra/g.py",
        'def f(log, password):\n    log.info("login", extra={"password": password})\n',
    ),
    "tenant-beyond-its-transaction": (
        "api/h.py",
        "SQL = \"SELECT set_config('millrace.tenant', $1, false)\"\n",
    ),
    "wall-taken-down": ("infra/migrations/1.sql", "ALTER TABLE t DISABLE ROW LEVEL SECURITY;\n"),
    "definer-with-the-callers-path": (
        "infra/migrations/2.sql",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT 1 $$;\n",
    ),
    "audit-written-elsewhere": ("api/i.py", 'SQL = "INSERT INTO audit.entries VALUES (1)"\n'),
    "markup-from-values": ("api/static/j.js", "element.innerHTML = row.name;\n"),
}
"""For each rule a file in which it must find something, once."""

LEFT_ALONE: dict[str, tuple[str, str]] = {
    "sql-from-values": (
        "api/ok_a.py",
        'COLUMNS = "a, b"\nasync def f(db, name):\n    await db.fetch(f"SELECT {COLUMNS} FROM t", name)\n',
    ),
    "router-without-scope": (
        "api/ok_b.py",
        "from infra.identity.secured import SecuredRouter\nrouter = SecuredRouter()\n"
        '@router.get("/v1/x", scope="fraud:read")\nasync def x(): ...\n',
    ),
    "credentials-read-elsewhere": (
        "api/ok_c.py",
        'def f(request):\n    return request.headers.get("If-None-Match")\n',
    ),
    "secret-compared-in-the-open": (
        "infra/ok_e.py",
        "import hmac\ndef f(proof, signature):\n    return hmac.compare_digest(proof.signature, signature)\n",
    ),
    "token-verified-by-its-own-words": (
        "infra/ok_f.py",
        'import jwt\ndef f(token, key):\n    return jwt.decode(token, key, algorithms=["EdDSA"])\n',
    ),
    "secret-logged": ("infra/ok_g.py", 'def f(log, name):\n    log.info("login", extra={"subject": name})\n'),
    "tenant-beyond-its-transaction": (
        "api/ok_h.py",
        "SQL = \"SELECT set_config('millrace.tenant', $1, true)\"\n",
    ),
    "definer-with-the-callers-path": (
        "infra/migrations/3.sql",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS\n"
        "$$ SELECT 1 $$;\n",
    ),
    "audit-written-elsewhere": ("api/ok_i.py", 'SQL = "SELECT * FROM audit.entries"\n'),
    "markup-from-values": ("api/static/ok_j.js", "element.textContent = row.name;\n"),
}


def test_every_rule_finds_what_it_is_for(tmp_path: Path) -> None:
    """Each rule finds its example and nothing else in any of the others; none cannot fail."""
    declared = {rule["id"] for rule in yaml.safe_load(RULES.read_text())["rules"]}
    assert declared == FOUND.keys() and LEFT_ALONE.keys() <= declared
    for path, text in (*FOUND.values(), *LEFT_ALONE.values()):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    # Its patterns may name folders of the project: those of a repository.
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    if not SEMGREP.exists():
        pytest.skip("`make scan` installs semgrep")
    command = [str(SEMGREP), "scan", "--json", "--quiet", "--metrics", "off", "--disable-version-check"]
    run = subprocess.run(
        [*command, "--no-git-ignore", "--config", str(RULES), "."],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{SEMGREP.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    document = json.loads(run.stdout)
    assert not document["errors"], document["errors"]
    found = defaultdict(list)
    for result in document["results"]:
        found[result["check_id"].rpartition(".")[2]].append(result["path"])
    assert dict(found) == {rule: [path] for rule, (path, _) in FOUND.items()}
