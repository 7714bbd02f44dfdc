"""Entity tags of single resources (RFC 9110, 8.8.3): whoever has the newest representation is told so, 304.

Strong tags, of the content itself: whatever changes in a row changes the tag, and nothing else does. They
spare the way, not the reading: whether it is still the asker's to see is found out each time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

DECLARED = "x-millrace-entity-tag"
"""Where an operation of the OpenAPI description says that its answers have one."""

_TAG = re.compile(r'(?:W/)?("[^"]*")')
_KEPT = frozenset({"etag", "cache-control", "vary", "expires", "content-location"})
"""What a 304 repeats of the answer in whose place it stands."""

DOCUMENTED: Mapping[str, Any] = {
    DECLARED: True,
    "parameters": [
        {
            "name": "If-None-Match",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "`ETag` of the answer that you have: while it is the newest, the answer is 304.",
        }
    ],
    "responses": {
        "200": {
            "headers": {
                "ETag": {
                    "description": "Changes with the content.",
                    "schema": {"type": "string"},
                }
            }
        },
        "304": {"description": "What you have is the newest one."},
    },
}
"""What is added to the description of an operation."""


def tagged(request: Request, answer: Response) -> Response:
    """`answer` with its tag, or 304 in its place where the client has it. A tag of its own stays."""
    if answer.status_code != 200:
        return answer
    if "etag" not in answer.headers:
        # A compressed answer consists of other bytes, so it has another tag.
        packed = "gzip" in request.headers.get("accept-encoding", "")
        digest = hashlib.blake2b(answer.body, digest_size=16).hexdigest()
        answer.headers["etag"] = f'"{digest}-gzip"' if packed else f'"{digest}"'
        answer.headers.setdefault("vary", "Accept-Encoding")
    if not known(request, answer.headers["etag"]):
        return answer
    kept = {name: value for name, value in answer.headers.items() if name in _KEPT}
    return Response(status_code=304, headers=kept)


def known(request: Request, tag: str) -> bool:
    """Whether the client says that it has what bears this tag."""
    given = request.headers.get("if-none-match", "").strip()
    return given == "*" or tag in _TAG.findall(given)
