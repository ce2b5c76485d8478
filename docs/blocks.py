"""Code blocks of Markdown pages, for the tests and for building the tutorial."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
_IMAGE = re.compile(r"!\[[^\]]*\]\((?:\.\./)?images/(?P<file>[\w-]+\.(?:png|webp))\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: The Markdown file.
        line: Line of the opening fence, from 1.
        language: First word of the info string, as "console" or "python".
        runs: False if the info string has the word "no-run".
        code: The content.
    """

    page: Path
    line: int
    language: str
    runs: bool
    code: str

    @property
    def commands(self) -> list[str]:
        """The shell commands of a console block, one per line; lines joined with && give several."""
        lines = (line.strip() for line in self.code.splitlines())
        return [command.strip() for line in lines if line for command in line.split("&&")]


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page that have a language."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, words[0], "no-run" not in words, match["code"])
        for match in _BLOCK.finditer(text)
        if (words := match["info"].split())
    ]


def read_images(page: Path) -> list[str]:
    """File names of the images in ``images/`` that a page shows, in order."""
    return list(dict.fromkeys(match["file"] for match in _IMAGE.finditer(page.read_text(encoding="utf-8"))))
