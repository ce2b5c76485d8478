"""mkdocs hook: marks code blocks that the tests do not run."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn the info string word ``no-run`` into a block title."""
    return re.sub(r"^```(console|python) no-run$", r'```\1 title="not run by the tests"', markdown, flags=re.MULTILINE)
