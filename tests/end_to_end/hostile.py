"""What schemathesis is told of us: kinds of bodies, and that no answer may be of the server's inside.

Loaded by its name (SCHEMATHESIS_HOOKS) into the runs of test_hostile_input.py.
"""

from __future__ import annotations

import re

import schemathesis
from hypothesis import strategies as st

INSIDE = re.compile(
    r"Traceback \(most recent call last\)|\bFile \"[^\"]+\", line \d|site-packages|\.py\b.{0,20}\bline \d"
    r"|<[\w.]+ object at 0x[0-9a-f]+>|<class '|psycopg|asyncpg|strawberry\.|sqlalchemy|graphql\.error"
    r"|\bSQLSTATE\b|syntax error at or near|relation \"[^\"]*\" does not exist|\bSELECT\s.+\sFROM\b"
    r"|postgresql://|redis://|\$argon2|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.S,
)
"""Stacks, objects, libraries, SQL, addresses with passwords, and secrets."""

schemathesis.openapi.media_type(
    "application/dicom", st.binary(max_size=2_000), aliases=["application/octet-stream"]
)
schemathesis.openapi.media_type('multipart/related; type="application/dicom"', st.binary(max_size=2_000))


@schemathesis.check
def tells_nothing_of_its_inside(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """No error of the server, and nothing of how it is made in any answer."""
    assert response.status_code < 500, f"{response.status_code}: {response.text[:500]}"
    found = INSIDE.search(response.content.decode("utf-8", "replace"))
    assert found is None, f"the answer tells {found[0][:200]!r}"
    for name in response.headers:
        assert name.lower() not in ("server", "x-powered-by"), f"the header {name} tells what serves it"
