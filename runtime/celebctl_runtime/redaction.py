"""Keeps the access token of the Hugging Face hub out of messages and tracebacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 6  # characters: a shorter text is no token, and may be part of a word


def without_token(text: str) -> str:
    """The text with the hub's token, from the environment or the file of ``hf auth login``, replaced by "***".

    Example:
        >>> without_token("there is no token here")
        'there is no token here'
    """
    for token in sorted(set(_tokens()), key=len, reverse=True):
        text = text.replace(token, "***")
    return text


def _tokens() -> Iterator[str]:
    values = [os.environ.get(name, "") for name in _VARIABLES]
    client = sys.modules.get("huggingface_hub")  # whoever has not loaded it has not sent its token
    if client is not None:
        values.append(client.get_token() or "")
    for value in values:
        for form in (value, value.strip(), *value.split()):
            if len(form) >= _SHORTEST:
                yield form
                yield repr(form)[1:-1]  # as in tracebacks
