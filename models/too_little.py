"""The error of whoever is to learn or measure from too little."""

from __future__ import annotations


class TooLittleError(ValueError):
    """Data that a model cannot be taught or measured by; the message says what is missing."""
