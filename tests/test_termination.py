"""Ctrl-C and SIGTERM at any moment: the documented exit code, no traceback, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from celebctl.cli import main
from celebctl.cli.termination import interrupt_on_sigterm

# `celebctl list`, which stops in the middle of writing a file, or in a string that Python runs, as imports do.
WRITES = """
import os, runpy, sys, time
from pathlib import Path
from celebctl.library import Library
from celebctl_runtime.files import atomic_write

def wait(temporary=None):
    if temporary is not None:
        temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)

def entries(self, model_key=None):
    if os.environ["WHERE"] == "write":
        atomic_write(Path("a.txt"), wait)
    exec("wait()")

Library.entries = entries
runpy.run_module("celebctl", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["write", "exec"])
def test_a_signal_ends_with_its_code_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int, where: str
) -> None:
    (tmp_path / "stopped.py").write_text(WRITES, encoding="utf-8")
    command = [sys.executable, "-m", "stopped", "list"]
    pipe, environment = subprocess.PIPE, {**os.environ, "WHERE": where}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == code and "Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} <= {"stopped.py", "__pycache__"}


def test_a_program_around_the_command_keeps_its_handlers() -> None:
    def own(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, own):
            signal.signal(signal.SIGTERM, handler)
            with interrupt_on_sigterm():
                assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is not signal.SIG_DFL)
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["list"])))
    thread.start()
    thread.join()
    assert codes == [0] and "thread" not in capsys.readouterr().err
