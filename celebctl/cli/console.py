"""Output of the command line: results on stdout; progress, messages and errors on stderr.

A result is a few lines (paths, names), or with --json one document. Colour and motion are for terminals only. The
packages report progress as `Progress` events and messages through `logging`; both are shown here.
"""

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from celebctl_runtime.progress import Progress, ProgressCallback
from celebctl_runtime.redaction import without_token

if TYPE_CHECKING:
    from rich.console import Console

FLAGS = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--debug": "debug"}
LOGGERS = ("celebctl", "celebctl_export", "celebctl_models", "celebctl_runtime")
_PLAIN_INTERVAL = 10.0  # seconds between progress lines without a terminal


@dataclass
class CliConsole:
    """Output settings and output of one invocation; `argv` are its arguments without the global options."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    argv: list[str] = field(default_factory=list[str])
    _console: "Console | None" = None

    @classmethod
    def from_argv(cls, argv: list[str]) -> "tuple[CliConsole, list[str]]":
        """The console, and `argv` without --json, --quiet and --debug, which may stand anywhere before a `--`."""
        stdout: Any = sys.stdout
        if isinstance(stdout, io.TextIOWrapper) and stdout.errors == "strict":
            cast(Any, stdout).reconfigure(errors="backslashreplace")  # what cannot be encoded must not end a command
        end = argv.index("--") if "--" in argv else len(argv)
        flags = {FLAGS[word] for word in argv[:end] if word in FLAGS}
        rest = [word for word in argv[:end] if word not in FLAGS] + argv[end:]
        return cls("json" in flags, "quiet" in flags, "debug" in flags, rest), rest

    # Messages: stderr.

    @property
    def interactive(self) -> bool:
        """Whether stderr is a terminal, without --quiet."""
        return not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def info(self, text: str, style: str = "") -> None:
        """A message; suppressed by --quiet."""
        if not self.quiet:
            self._message(text, style)

    def warn(self, text: str) -> None:
        """A message that --quiet does not suppress."""
        self._message(f"note: {text}", "yellow")

    def suggest(self, command: str, why: str = "next") -> None:
        """Suggest the next command."""
        self.info(f"{why}: {command}", "cyan")

    def error(self, code: str, problem: str, hint: str = "", reason: str = "") -> None:
        """An error: one line and its hint on stderr, and with --json the document on stdout."""
        problem, hint = without_token(problem), without_token(hint)
        self._message(f"error: {problem}", "bold red")
        if hint:
            self._message(f"hint: {hint}", "cyan")
        if self.json:
            document = {"error": {"code": code, "reason": reason, "problem": problem, "hint": hint}}
            self._write(_json_text(document))

    def traceback(self, error: BaseException) -> None:
        """A traceback, without the hub's token, which errors of HTTP clients may quote."""
        import traceback

        sys.stderr.write(without_token("".join(traceback.format_exception(error))))

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
        """Yield `report(step, steps, text)`: a bar on a terminal, else a line every ten seconds."""
        if not self.interactive:
            yield self._plain_progress(title)
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"))
        # Left alone, rich would send what is printed to stdout meanwhile to its own console, which is stderr.
        with Progress(*columns, console=self._rich(), transient=True, redirect_stdout=False) as bar:
            task = bar.add_task(title, total=None, text="")

            def report(step: int, steps: int, text: str) -> None:
                bar.update(
                    task, completed=step, total=steps or None, text=f"{f'{step}/{steps}  ' if steps else ''}{text}"
                )

            yield report

    @contextlib.contextmanager
    def track(self, title: str) -> Generator[ProgressCallback]:
        """Yield a progress callback: a bar on a terminal, else a line every ten seconds."""
        with self.progress(title) as report:

            def show(event: Progress) -> None:
                metrics = "  ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in event.metrics.items())
                stage = "" if event.stage in title else event.stage
                report(event.step, event.total, "  ".join(filter(None, (stage, metrics))))

            yield show

    @contextlib.contextmanager
    def show_log(self) -> Generator[None]:
        """Show what the packages log, for the length of a `with` block: information as `info`, warnings as `warn`."""
        handler, loggers = _LogHandler(self), [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG if self.debug else logging.INFO)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)

    @contextlib.contextmanager
    def status(self, title: str) -> "Generator[Callable[[str], None]]":
        """Yield `show(stage)` for work without countable steps: a spinner on a terminal, else a line per stage."""
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
            self._write(_json_text(document, indent=2))
        elif lines:
            self._write("\n".join(lines))

    def output_table(self, lines: Sequence[str], document: Mapping[str, Any], table: Callable[[], None]) -> None:
        """As `output`, but on a terminal `table` prints a table in place of the lines."""
        if self.json or not (self.interactive and sys.stdout.isatty()):
            self.output(lines, document)
        else:
            table()

    def output_bytes(self, data: bytes) -> None:
        """Raw bytes on stdout, for -o -."""
        self._to_stdout(lambda: (sys.stdout.flush(), sys.stdout.buffer.write(data), sys.stdout.buffer.flush()))

    def _write(self, text: str) -> None:
        if sys.stdout.isatty():
            text = printable(text)
        self._to_stdout(lambda: (sys.stdout.write(f"{text}\n"), sys.stdout.flush()))

    def _to_stdout(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            # The reader closed the pipe (| head). Python flushes once more at exit, which must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _message(self, text: str, style: str = "") -> None:
        text = without_token(printable(text))
        if sys.stderr.isatty():
            from rich.text import Text

            self._rich().print(Text(text, style=style), soft_wrap=True)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _rich(self) -> "Console":
        if self._console is None:  # shared, so that messages appear above a moving bar
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
        return self._console

    def _plain_progress(self, title: str) -> Callable[[int, int, str], None]:
        last = time.monotonic()

        def report(step: int, steps: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _PLAIN_INTERVAL:
                last = time.monotonic()
                self.info(" ".join(filter(None, (title, f"{step}/{steps}" if steps else "", text))))

        return report


def _json_text(document: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON that stdout's encoding can hold."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(document, ensure_ascii=not is_unicode, indent=indent)


def printable(text: str) -> str:
    """`text` without what a terminal obeys: text from files may hold escape sequences, and marks that turn it round."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class _LogHandler(logging.Handler):
    """Shows log records on a console."""

    def __init__(self, console: CliConsole) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        show = self._console.warn if record.levelno >= logging.WARNING else self._console.info
        show(record.getMessage())
