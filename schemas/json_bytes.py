"""Bytes inside JSON: `{"base64": "..."}`, in examples and wherever people edit events."""

from __future__ import annotations

import base64
from typing import Any


def of_json(value: dict[str, Any]) -> Any:
    """The object hook for `json.loads`. Raises ValueError where the text is no base64."""
    return base64.b64decode(value["base64"], validate=True) if set(value) == {"base64"} else value


def to_json(value: Any) -> Any:
    """The default for `json.dumps`. Raises TypeError for what is not bytes."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")
