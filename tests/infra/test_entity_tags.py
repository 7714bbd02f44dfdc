"""Entity tags as RFC 9110 has them: which of them a client may name, and what a 304 repeats."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import Response

from infra.entity_tags import known, tagged


def request(**headers: str) -> Request:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": given})


@pytest.mark.parametrize(
    ("given", "is_known"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b" ,W/"a"', True),
        ("*", True),
        (" * ", True),
        ("", False),
        ("a", False),
        ('"b"', False),
        ('"ab"', False),
        ('"x"a"', False),
        ('"*"', False),
    ],
)
def test_a_tag_is_known_by_its_whole_name(given: str, is_known: bool) -> None:
    """One of a list, weak or strong, or any by a star; never a part of another."""
    assert known(request(if_none_match=given), '"a"') is is_known


def test_the_tag_is_of_the_content() -> None:
    """The same content has the same tag, other content another, and compressed content one of its own."""
    tags = [
        tagged(request(**headers), Response(body)).headers["etag"]
        for body, headers in (
            (b"x", {}),
            (b"x", {}),
            (b"y", {}),
            (b"x", {"accept_encoding": "br, gzip"}),
        )
    ]
    assert tags[0] == tags[1] and len(set(tags)) == 3


def test_a_304_stands_in_the_place_of_its_answer() -> None:
    """Without content, with tag, age and what the answer depends on; nothing of an error is tagged."""
    answer = Response(b"x", headers={"Cache-Control": "private", "X-Other": "1", "ETag": '"mine"'})
    found = tagged(request(if_none_match='"mine"'), answer)
    assert (found.status_code, found.body) == (304, b"")
    assert found.headers["etag"] == '"mine"' and found.headers["cache-control"] == "private"
    assert "x-other" not in found.headers and "content-type" not in found.headers
    missing = tagged(request(if_none_match="*"), Response(b"x", 404))
    assert missing.status_code == 404 and "etag" not in missing.headers
