"""The table of faults is complete, and the faults that no other file tests."""

from __future__ import annotations

import ast
import errno
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import CommandLine, toy_bundle
from fault_cases import CASES, Case
from generate_faults import page

from celebctl.jobs.job_file import read_job_file
from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import SetupError
from celebctl_runtime.files import atomic_write

TESTS = Path(__file__).parent
ALL = [case for cases in CASES.values() for case in cases]
PIPE = subprocess.PIPE


# The table


def functions(module: str) -> set[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_case_has_a_number_and_an_outcome() -> None:
    assert [case.number for case in ALL] == list(range(1, 63))
    assert all(case.fault and case.expected for case in ALL)
    assert len({case.fault for case in ALL}) == 62


@pytest.mark.parametrize("case", ALL, ids=lambda case: str(case.number))
def test_every_case_has_tests_that_exist(case: Case) -> None:
    assert case.tests and len(set(case.tests)) == len(case.tests)
    for test in case.tests:
        module, function = test.split("::")
        assert function in functions(module), test


def test_the_page_of_faults_is_current() -> None:
    path = TESTS.parent / "docs" / "reference" / "faults.md"
    assert path.read_text(encoding="utf-8") == page(), "run: python docs/generate_faults.py"


# Prompts


@pytest.mark.parametrize("prompt", ["", "   ", "(", "((alice", "))", ":1.2", "(alice:1e9)", "()", "[]", "\t\n"])
def test_odd_prompts_are_plain_text(console: CommandLine, prompt: str) -> None:
    toy_bundle(console.library, make_identity("alice"))
    assert console("gen", "--steps", "1", "--out", "a.png", "--", prompt).code == 0


def test_a_person_twice_is_in_both_places(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice"))
    ids = bundle.tokenizer().encode("alice and alice", bundle.token_ids).ids
    assert all(np.count_nonzero(ids == token) == 2 for token in bundle.token_ids["alice"])


def test_many_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"alice smiling\r\n\r\n" * 100_000)
    began = time.process_time()
    jobs = read_job_file(path)
    assert (len(jobs.lines), jobs.lines[-1].line, jobs.errors) == (100_000, 199_999, [])
    assert time.process_time() - began < 10


# kill -9


def test_nothing_is_lost_by_kill_9() -> None:
    """A small share of `make torture`: a removal killed at each of its writes, other commands at random moments."""
    for words in ("--only rm --kills 0", "--no-writes --kills 6"):
        command = [sys.executable, str(TESTS / "torture.py"), "--world", "toy", "--seed", "1", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and " 0 of " in done.stdout.splitlines()[-1], done.stdout + done.stderr
        assert int(done.stdout.splitlines()[-1].split()[0]) > 2


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "celebctl", str(folder)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.bin"
    atomic_write(path, b"old")
    with pytest.raises(SetupError) as error:
        atomic_write(path, bytes(100_000))
    assert error.value.reason == "disk_full"
    assert path.read_bytes() == b"old" and [entry.name for entry in small_disk.iterdir()] == ["a.bin"]
    library = Library(small_disk / "home")
    with pytest.raises(SetupError) as error:
        for number in range(100):
            library.save(make_identity(f"p{number}", number))
    assert error.value.reason == "disk_full" and library.names()
    assert all(entry.load().name == entry.name for entry in library.entries())


LIMITED = """
import resource, sys
from pathlib import Path
from celebctl_runtime.errors import SetupError
from celebctl_runtime.files import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write(Path("a.bin"), bytes(5000))
except SetupError as error:
    print(error.reason)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_limit_on_file_sizes_keeps_the_old_file() -> None:
    Path("a.bin").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert done.stdout == "file_too_large\n"
    assert Path("a.bin").read_bytes() == b"old" and [path.name for path in Path().iterdir()] == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a folder in use")
def test_a_vanished_folder(console: CommandLine) -> None:
    toy_bundle(console.library, make_identity("alice"))
    folder = console.folder / "out"

    def vanish(temporary: Path) -> None:
        shutil.rmtree(folder)
        temporary.write_bytes(b"new")

    with pytest.raises(SetupError) as error:
        atomic_write(folder / "a.png", vanish)
    assert error.value.reason == "not_writable" and not folder.exists()
    assert console("gen", "alice", "--steps", "1", "--out", "out/a.png").code == 0
    console.folder.rename(console.folder.with_name("elsewhere"))
    shutil.rmtree(console.folder.with_name("elsewhere"))
    result = console("gen", "alice", "--json")
    assert (result.code, result.document["error"]["reason"]) == (6, "no_current_folder")


# Several processes

CHANGES = """
import sys
from pathlib import Path
from bundle_fakes import make_identity
from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
number, place = int(sys.argv[1]), Path(sys.argv[2])
library, bundle = Library(place / "home"), Bundle.open(place / "bundle")
print("ready", flush=True)
sys.stdin.readline()
for turn in range(6):
    person = make_identity(f"p{number}-{turn}", 10 * number + turn)
    library.save(person)
    bundle.add(person)
    if turn % 2:
        library.remove(person.name)
        bundle.remove(person.name)
"""


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_change_one_bundle_lose_nothing(tmp_path: Path, count: int) -> None:
    bundle = write_bundle(tmp_path / "bundle", spare_rows=64)
    bundle.add(make_identity("alice"))
    running = start(CHANGES, count, tmp_path)
    while any(process.poll() is None for process in running):
        reader = Bundle.open(bundle.path, verify="quick")  # whole at every moment
        assert "alice" in reader.names
    finish(running)
    kept = {f"p{number}-{turn}" for number in range(count) for turn in (0, 2, 4)}
    assert set(Bundle.open(bundle.path, verify="full").names) == {"alice", *kept}
    library = Library(tmp_path / "home")
    assert set(library.names()) == kept
    for entry in library.entries():
        assert entry.load().digest == bundle_digest(bundle.path, entry.name)


SAVES = """
import sys
from pathlib import Path
from bundle_fakes import make_identity
from celebctl.library import Library
from celebctl_runtime.errors import BusyError, UsageError
print("ready", flush=True)
sys.stdin.readline()
try:
    Library(Path(sys.argv[2]) / "home").save(make_identity("alice", int(sys.argv[1])))
except (BusyError, UsageError) as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("count", [2, 3])
def test_of_processes_that_save_one_name_one_succeeds(tmp_path: Path, count: int) -> None:
    running = start(SAVES, count, tmp_path)
    codes = [process.wait() for process in running]
    finish(running, None)
    assert codes.count(0) == 1 and set(codes) <= {0, 2, 9}
    assert Library(tmp_path / "home").load("alice") == make_identity("alice", codes.index(0))


def start(code: str, count: int, place: Path) -> list[subprocess.Popen[str]]:
    """Processes that have imported everything, and begin at the same time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number), str(place)], stdin=PIPE, stdout=PIPE, text=True, env=environment
        )
        for number in range(count)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return running


def finish(running: list[subprocess.Popen[str]], code: int | None = 0) -> None:
    for process in running:
        process.communicate()
        assert code is None or process.returncode == code


def bundle_digest(path: Path, name: str) -> str:
    return Bundle.open(path, verify="none").manifest.identities[name].digest


# Clocks and pipes


@pytest.mark.parametrize("jump", [-400 * 86_400, 400 * 86_400])
def test_a_clock_that_jumps_hides_no_change(tmp_path: Path, jump: int) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    other = Bundle.open(bundle.path)
    bundle.add(make_identity("alice"))
    then = time.time() + jump
    os.utime(bundle.file("manifest.json"), (then, then))
    assert not other.is_current() and other.refresh() and other.names == ("alice",)
    bundle.add(make_identity("bob", 2))
    assert other.refresh() and other.names == ("alice", "bob")
    Bundle.open(bundle.path, verify="full")


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_a_pipe_closed_at_once_is_no_error(console: CommandLine) -> None:
    console.add_people("alice")
    for words in ("list", "list --json", "--help", "show alice", "nobody"):
        script = f"{shlex.quote(sys.executable)} -m celebctl {words} | head -0; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert int(done.stdout) == (2 if words == "nobody" else 0)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_no_error_number_of_a_write_is_a_bug() -> None:
    """A vanished folder is ENOENT, a stale handle of a network file system ESTALE."""
    for number in (errno.ENOENT, errno.ESTALE, errno.EIO):

        def fail(_: Path, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with pytest.raises(SetupError):
            atomic_write(Path("a.txt"), fail)
