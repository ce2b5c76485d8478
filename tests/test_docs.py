"""README and docs: every command parses, quick start and tutorial run, and generated and listed facts are current."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from blocks import Block, read_blocks, read_images
from generate_cli import reference

from celebctl.cli.app import app
from celebctl.settings import KNOWN
from celebctl_runtime import errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
RUN_PAGES = [ROOT / "README.md", DOCS / "tutorial.md"]
IMAGES = {"README.md": ["alice.png", "chess.png"], "tutorial.md": read_images(DOCS / "tutorial.md")}
EXPORT = ["-m", "celebctl", "export"]
LANGUAGES = {"json", "console", "python", "text", "toml", "mermaid", "bibtex"}
BLOCKS = [block for page in PAGES for block in read_blocks(page)]
COMMANDS = [name for name, command in vars(typer.main.get_command(app))["commands"].items() if not command.hidden]
#: docs/index.md says that learning takes this many steps in the tests.
STEPS = 4


def where(block: Block) -> str:
    return f"{block.page.relative_to(ROOT).as_posix()}:{block.line}"


def console(*starts: str) -> Iterator[Any]:
    """The commands of all console blocks that begin with one of these words, as pytest parameters."""
    for block in BLOCKS:
        for command in block.commands if block.language == "console" else []:
            if Path(command.split()[0]).name in starts:
                yield pytest.param(command, id=f"{where(block)} {command}")


def inline(*starts: str) -> Iterator[Any]:
    """Inline code that begins with one of these words and has arguments."""
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "cli.md"):
            continue  # former names; synopses
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in dict.fromkeys(re.findall(r"(?<!`)`([a-z][^`\n]*)`(?!`)", text)):
            if code.split()[0] in starts and " " in code and code.split()[1] not in ("...", "COMMAND"):
                yield pytest.param(code, id=f"{page.relative_to(ROOT).as_posix()} {code}")


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words name, and its arguments; fails for unknown and for former names."""
    command: Any = typer.main.get_command(app)
    words, path = [word for word in words if word not in ("--json", "--quiet", "--debug")], "celebctl"
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"{path} has no command {name}"
        command, path = command.commands[name], f"{path} {name}"
        assert not command.hidden, f"{path} is a former name"
    current = {name for p in command.params if not getattr(p, "hidden", False) for name in (*p.opts, *p.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word in current | {"--help"}, f"{path} has no option {word}, or it is a former name"
    return command, words


@pytest.mark.parametrize("block", BLOCKS, ids=where)
def test_blocks_have_a_known_language(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "console":
        assert all(command.split()[0].lstrip(".") for command in block.commands)
        starts = {Path(command.split()[0]).name for command in block.commands}
        assert starts <= {"celebctl", "make", "python", "pip"}
        assert starts == {"celebctl"} or not block.runs
    if block.language == "python":
        compile(block.code, where(block), "exec")


@pytest.mark.parametrize("command", list(console("celebctl")))
def test_commands_parse(command: str) -> None:
    found, arguments = find_command(shlex.split(command)[1:])
    found.make_context(command, arguments)


@pytest.mark.parametrize("code", list(inline("celebctl", *COMMANDS)))
def test_commands_in_the_text_exist(code: str) -> None:
    words = shlex.split(code)
    find_command(words[1:] if words[0] == "celebctl" else words)


@pytest.mark.parametrize("command", ["learm a.png", "learn a.png --nam x", "setup sd15", "basis learn"])
def test_wrong_commands_are_found(command: str) -> None:
    with pytest.raises(AssertionError):
        find_command(shlex.split(command))


@pytest.mark.parametrize("command", [*console("make"), *inline("make")])
def test_make_targets_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in shlex.split(command)[1:]:
        if "=" not in word:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), word


@pytest.mark.parametrize("command", list(console("pip")))
def test_extras_exist(command: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\.\[([\w,]+)\]", command):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert "celebctl" not in shlex.split(command), "the package is not on PyPI"


def test_extras_of_the_install_table_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {e for text in re.findall(r"\.\[([\w,]+)\]", PAGES[0].read_text(encoding="utf-8")) for e in text.split(",")}
    assert named >= {"cpu", "cuda", "trt", "learn", "export"}
    assert named <= set(project["optional-dependencies"])


@pytest.mark.parametrize("command", [*console("python"), *inline("python")])
def test_python_commands_name_existing_files_and_options(command: str) -> None:
    script, *arguments = shlex.split(command)[1:]
    file = ROOT / script
    if script == "-m":
        module, *arguments = arguments
        if not module.startswith("benchmarks"):
            assert importlib.util.find_spec(module)
            return
        stem = ROOT / module.replace(".", "/")
        file = stem.with_suffix(".py") if stem.with_suffix(".py").is_file() else stem / "__main__.py"
    source = file.read_text(encoding="utf-8")
    for word in arguments:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{file.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_narrow(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|---"):
            assert line.strip().strip("|").count("|") < 6, line


def test_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_command_reference_is_current() -> None:
    page = DOCS / "reference" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference(), "run: python docs/generate_cli.py"


def test_settings_page_lists_every_setting_and_exit_code() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in page.splitlines()]
    assert {row[:2] for row in rows if row[0] in KNOWN} == {(s.name, s.variable) for s in KNOWN.values()}
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.CelebctlError)]
    expected = {(str(c.exit_code), c.__name__, c.code) for c in classes if c is not errors.CelebctlError}
    assert expected <= {row[:3] for row in rows}


def test_images_come_from_the_commands_of_their_page() -> None:
    shown: list[str] = []
    for page, fewest in (
        (DOCS / "tutorial.md", 8),
        (DOCS / "how-to" / "prompts.md", 4),
        (DOCS / "how-to" / "animate.md", 1),
    ):
        commands = " ".join(command for block in read_blocks(page) for command in block.commands)
        images = read_images(page)
        assert len(images) >= fewest
        assert [name for name in images if name not in commands] == []
        shown += images
    assert {path.name for path in (DOCS / "images").iterdir()} == set(shown)
    assert sum(path.stat().st_size for path in (DOCS / "images").iterdir()) < 1_500_000


def test_quick_start_and_tutorial_run(tmp_path: Path) -> None:
    library, exported = Library(tmp_path), False
    for page in RUN_PAGES:
        folder = tmp_path / page.stem
        shutil.copytree(ROOT / "examples", folder / "examples")
        for block in read_blocks(page):
            for arguments in shortened(block) if block.runs else []:
                if arguments == EXPORT and exported:
                    continue  # the same model once more
                library.run(arguments, folder, where(block))
                exported |= arguments == EXPORT
        assert [name for name in IMAGES[page.name] if not (folder / name).is_file()] == []
        if page.name == "README.md":
            library.run(["-m", "celebctl", "rm", "alice", "bob"], folder, "between the pages")


@dataclass(frozen=True)
class Library:
    """Python processes with a library of their own."""

    home: Path

    def run(self, arguments: list[str], folder: Path, place: str) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in (".", "models", "export", "runtime"))
        own = {"CELEBCTL_HOME": str(self.home / "home"), "CELEBCTL_MODEL": "mini", "PYTHONPATH": paths}
        words = [sys.executable, *arguments]
        done = subprocess.run(
            words, cwd=folder, env={**os.environ, **own}, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, f"{place}: {arguments}\n{done.stdout}{done.stderr}"


def shortened(block: Block) -> list[list[str]]:
    """The arguments of the Python processes that run a block, with STEPS learning steps."""
    if block.language == "python":
        return [["-c", re.sub(r"(\.learn\(.*)\)$", rf"\1, steps={STEPS})", block.code, flags=re.MULTILINE)]]
    commands = [shlex.split(command) for command in block.commands] if block.language == "console" else []
    return [["-m", *words, *(["--steps", str(STEPS)] if words[1] == "learn" else [])] for words in commands]
