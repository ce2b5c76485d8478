"""Run the tutorial and the page on prompts, and keep their images: python docs/build_tutorial.py (minutes)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from blocks import read_blocks, read_images
from PIL import Image

DOCS = Path(__file__).parent
MAX_WIDTH = 1408  # pixels


def run_page(page: Path, folder: Path, *, drawing: bool = False) -> None:
    """Run the blocks of a page in a folder, with a library of their own.

    ``drawing``: only the commands that write an image of the page, whether their block runs in the tests or not.
    """
    environment = {**os.environ, "CELEBCTL_HOME": str(folder / "home"), "CELEBCTL_MODEL": "mini"}
    for block in read_blocks(page):
        commands = [one for one in block.commands if not drawing or any(name in one for name in read_images(page))]
        if not (block.runs or (drawing and commands)) or block.language not in ("console", "python"):
            continue
        for arguments in command_lines(block.language, block.code, commands):
            subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True)


def command_lines(language: str, code: str, commands: list[str]) -> list[list[str]]:
    """The arguments of the Python processes that run a block."""
    if language == "python":
        return [["-c", code]]
    return [["-m", *shlex.split(command)] for command in commands]


def keep_image(source: Path, target: Path) -> None:
    """Write an image that is at most MAX_WIDTH pixels wide."""
    image = Image.open(source).convert("RGB")
    image.thumbnail((MAX_WIDTH, MAX_WIDTH), Image.Resampling.LANCZOS)
    image.save(target, optimize=True)


def main() -> None:
    tutorial, prompts = DOCS / "tutorial.md", DOCS / "how-to" / "prompts.md"  # which draws the tutorial's people
    with tempfile.TemporaryDirectory() as folder:
        run_page(tutorial, Path(folder))
        run_page(prompts, Path(folder), drawing=True)
        for name in (*read_images(tutorial), *read_images(prompts)):
            keep_image(Path(folder) / name, DOCS / "images" / name)


if __name__ == "__main__":
    main()
