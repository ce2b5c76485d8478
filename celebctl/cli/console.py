"""How the command line speaks: results on stdout, talk on stderr, colour and motion only on a terminal.

A result is a few lines (paths, names), or with --json one document. Talk is short and never needed by a program.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

FLAGS = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--debug": "debug"}
_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


@dataclass
class CliConsole:
    """One run's manners: where words go and how many of them. `words` is the command as typed."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    argv: list[str] = field(default_factory=list[str])
    _console: "Console | None" = None

    @classmethod
    def from_argv(cls, words: list[str]) -> "tuple[CliConsole, list[str]]":
        """The desk, and the words without --json, --quiet and --debug, which may stand anywhere before a `--`."""
        end = words.index("--") if "--" in words else len(words)
        said = {FLAGS[word] for word in words[:end] if word in FLAGS}
        rest = [word for word in words[:end] if word not in FLAGS] + words[end:]
        return cls("json" in said, "quiet" in said, "debug" in said, rest), rest

    # Talk: stderr.

    @property
    def interactive(self) -> bool:
        """Whether somebody watches: stderr is a terminal, and quiet was not asked for."""
        return not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def info(self, text: str, style: str = "") -> None:
        """A line of talk; not said when quiet."""
        if not self.quiet:
            self._say(text, style)

    def warn(self, text: str) -> None:
        """Something to know that is no error; said even when quiet."""
        self._say(f"note: {text}", "yellow")

    def suggest(self, command: str, why: str = "next") -> None:
        """The command to try now."""
        self.info(f"{why}: {command}", "cyan")

    def error(self, code: str, problem: str, hint: str = "", reason: str = "") -> None:
        """An error: one line and its hint on stderr, and with --json the document on stdout."""
        self._say(f"error: {problem}", "bold red")
        if hint:
            self._say(f"hint: {hint}", "cyan")
        if self.json:
            self._write(json.dumps({"error": {"code": code, "reason": reason, "problem": problem, "hint": hint}}, ensure_ascii=False))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table, on a terminal only."""
        if not self.interactive or self.json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, style="bold" if number == 0 else "", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._rich().print(table)

    @contextlib.contextmanager
    def progress(self, title: str) -> "Generator[Callable[[int, int, str], None]]":
        """Yield `report(step, steps, text)`: a live bar on a terminal, else a line now and then."""
        if not self.interactive:
            yield self._plain_progress(title)
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"))
        # Left alone, rich would send what is printed to stdout meanwhile to its own console, which is stderr.
        with Progress(*columns, console=self._rich(), transient=True, redirect_stdout=False) as bar:
            task = bar.add_task(title, total=None, text="")

            def report(step: int, steps: int, text: str) -> None:
                bar.update(task, completed=step, total=steps, text=f"{step}/{steps}  {text}")

            yield report

    @contextlib.contextmanager
    def status(self, title: str) -> "Generator[Callable[[str], None]]":
        """Yield `say(stage)` for work without countable steps: a spinner on a terminal, else a line a stage."""
        if not self.interactive:
            self.info(title)
            yield lambda stage: self.info(f"  {stage}")
            return
        from rich.markup import escape

        with self._rich().status(escape(title)) as status:
            yield lambda stage: status.update(escape(f"{title}: {stage}"))

    # Results: stdout.

    def output(self, lines: Sequence[str], document: Mapping[str, Any]) -> None:
        """The command's result: `lines`, or with --json `document`."""
        if self.json:
            self._write(json.dumps(document, ensure_ascii=False, indent=2))
        elif lines:
            self._write("\n".join(lines))

    def output_table(self, lines: Sequence[str], document: Mapping[str, Any], table: Callable[[], None]) -> None:
        """Like `give`, but somebody who looks at a terminal gets the table in place of the bare lines."""
        if self.json or not (self.interactive and sys.stdout.isatty()):
            self.output(lines, document)
        else:
            table()

    def output_bytes(self, data: bytes) -> None:
        """Raw bytes on stdout, for -o -."""
        self._outward(lambda: (sys.stdout.flush(), sys.stdout.buffer.write(data), sys.stdout.buffer.flush()))

    def _write(self, text: str) -> None:
        self._outward(lambda: (sys.stdout.write(f"{text}\n"), sys.stdout.flush()))

    def _outward(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            # The reader has left (| head). Python would complain once more when it flushes at exit: give it a sink.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _say(self, text: str, style: str = "") -> None:
        if sys.stderr.isatty():
            from rich.text import Text

            self._rich().print(Text(text, style=style), soft_wrap=True)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _rich(self) -> "Console":
        if self._console is None:  # one for all, so that a line of talk goes above a moving bar and not through it
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
        return self._console

    def _plain_progress(self, title: str) -> Callable[[int, int, str], None]:
        last = time.monotonic()

        def report(step: int, steps: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _PLAIN_EVERY:
                last = time.monotonic()
                self.info(f"{title} {step}/{steps} {text}".rstrip())

        return report
