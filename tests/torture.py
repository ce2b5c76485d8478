"""Kill -9 at every write and at random moments of every command that writes; then check that nothing is lost.

    python tests/torture.py --kills 200            # or: make torture KILLS=200
    python tests/torture.py --world toy --kills 20 --seconds 8 --seed 3

For each command there is a run that is not killed, which counts its writes and takes its time. Then the command runs in
a fresh copy of the library and is killed: once at each write (before it, or half-way through the bytes), and at moments
drawn at random, `--kills` of these over all commands. After each kill

* every identity that was there is there with the same numbers, unless the command removes or renames it;
* every identity and every bundle in the library opens, and the bundle verifies in full;
* every visible file in the output folder can be read to its end;
* the same command run again succeeds, unless the killed one had finished;
* what was left under hidden names, once it is made two days old, is gone after the next change.

The processes are forked from one that has imported everything, so that kills fall into the work and not into imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("", "models", "export", "runtime", "tests")]

from bundle_fakes import make_identity, write_bundle  # noqa: E402
from console_fakes import MODEL, MODEL_KEY, TABLE_HASH  # noqa: E402

from celebctl.library import Library  # noqa: E402
from celebctl_runtime import files  # noqa: E402
from celebctl_runtime.bundle.bundle import Bundle  # noqa: E402
from celebctl_runtime.errors import CelebctlError  # noqa: E402
from celebctl_runtime.identity import Identity  # noqa: E402

#: Functions that change the disk: a process can be killed before each call.
WRITES = ("replace", "link", "rename", "unlink", "fsync", "rmdir")
DAY = 86_400


@dataclass(frozen=True)
class Command:
    """A command that writes; `worlds` have what it needs."""

    words: str
    #: Exit codes of the repeated command when the killed one had finished.
    finished: tuple[int, ...] = (0,)
    #: People that the command removes, renames or learns again.
    changes: tuple[str, ...] = ()
    worlds: tuple[str, ...] = ("toy", "mini")


COMMANDS = (
    Command("sample-photo new.png --seed 3 --force", worlds=("mini",)),
    Command("learn face.png --name carol --steps 2 --no-sheet --force", worlds=("mini",)),
    Command("learn face.png --name alice --instant --force", changes=("alice",), worlds=("mini",)),
    Command("sample --name dave --seed 5 --force", worlds=("mini",)),
    Command("export --model other", worlds=("mini",)),
    Command("mix alice bob --name erin --force"),
    Command("interpolate alice bob --frames 2 --steps 1 --out strip.png --force"),
    Command("rename alice zoe", finished=(4,), changes=("alice",)),
    Command("rm bob", finished=(4,), changes=("bob",)),
    Command("export --add carla"),
    Command("export --remove alice", finished=(0, 4)),
    Command("gen carla --seed 1 --steps 1 --out old.png --force"),
    Command("gen alice --seed 1 --steps 1 -n 2 --out drawn/ --force"),
    Command("regen old.png --out again.png --force"),
    Command("run jobs.jsonl --out many --seed 1"),
    Command("grid alice --x seed=1,2 --steps 1 --out grid.png --force"),
    Command("edit old.png bob --steps 2 --out edited.png --force", worlds=("mini",)),
    Command("export-embedding alice --out embeddings/alice.safetensors --force"),
    Command("import alice.safetensors --name fay --force", worlds=("mini",)),
    Command("use mini"),
)


@dataclass
class Result:
    """What happened to one command."""

    words: str
    writes: int = 0
    seconds: float = 0.0
    kills: int = 0
    early: int = 0  # runs that ended before their kill
    leftovers: int = 0
    problems: list[str] = field(default_factory=list[str])


class World:
    """A library with alice, bob and carla, a bundle without carla, and a folder with images; copied for each run."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.model = MODEL if name == "toy" else "mini"
        (folder / "template" / "here").mkdir(parents=True)
        (self._toy if name == "toy" else self._mini)(folder / "template")
        self.people = {entry.name: entry.load().digest for entry in Library(folder / "template" / "home").entries()}

    def copy(self) -> Path:
        """A fresh copy of the template."""
        place = self.folder / "run"
        shutil.rmtree(place, ignore_errors=True)
        return Path(shutil.copytree(self.folder / "template", place, symlinks=True))

    def run(self, place: Path, words: str, **how: Any) -> Ended:
        """Run a command in a copy."""
        return run(words.split(), place, self.model, **how)

    def _toy(self, place: Path) -> None:
        library = Library(place / "home")
        for number, name in enumerate(("alice", "bob", "carla"), 1):
            library.save(make_identity(name, number))
        bundle = write_bundle(library.bundle_path(MODEL, TABLE_HASH))
        for name in ("alice", "bob"):
            bundle.add(library.load(name, MODEL_KEY))
        self._files(place)

    def _mini(self, place: Path) -> None:
        from conftest import write_pipeline

        write_pipeline(place / "here" / "other", "epsilon")
        self._do(place, "sample-photo face.png --seed 7")
        for number, name in enumerate(("alice", "bob", "carla"), 1):
            self._do(place, f"sample --name {name} --seed {number}")
        self._do(place, "export alice bob")
        self._do(place, "export-embedding alice --out alice.safetensors")
        self._files(place)

    def _files(self, place: Path) -> None:
        self._do(place, "gen alice --seed 9 --steps 1 --out old.png")
        jobs = [{"prompt": f"{name} smiling", "steps": 1, "count": 2} for name in ("alice", "bob")]
        text = "".join(json.dumps(job) + "\n" for job in jobs)
        (place / "here" / "jobs.jsonl").write_text(text, encoding="utf-8")

    def _do(self, place: Path, words: str) -> None:
        ended = self.run(place, words)
        if ended.code != 0:
            raise RuntimeError(f"celebctl {words} ended with {ended.code}: {ended.errors}")


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (-9 when killed), seconds, the number of writes, and its stderr."""

    code: int
    seconds: float
    writes: int
    errors: str


def run(words: Sequence[str], place: Path, model: str, *, after: float | None = None, at: int | None = None) -> Ended:
    """Run a command in a process of its own, and kill it after some seconds or at its `at`-th write, from 0."""
    report, began = place / "stderr", time.perf_counter()
    counter = place / "writes"
    process = os.fork()
    if process == 0:
        code = 99
        try:
            code = _child(words, place, model, report, at)
            counter.write_text(str(_writes[0]), encoding="ascii")
        finally:
            os._exit(code)
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
        if after is not None and time.perf_counter() - began >= after:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            after = None
        time.sleep(0.0005)
    seconds = time.perf_counter() - began
    writes = int(counter.read_text(encoding="ascii")) if counter.exists() else 0
    counter.unlink(missing_ok=True)
    errors = report.read_text(encoding="utf-8", errors="replace") if report.exists() else ""
    return Ended(os.waitstatus_to_exitcode(ended[1]), seconds, writes, errors)


_writes = [0]


def _child(words: Sequence[str], place: Path, model: str, report: Path, at: int | None) -> int:
    from celebctl.cli import main

    os.chdir(place / "here")
    os.environ.update(CELEBCTL_HOME=str(place / "home"), CELEBCTL_MODEL=model)
    output = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with contextlib.ExitStack() as stack:
        _arm(at)
        code = main(list(words))
        stack.callback(sys.stdout.flush)
    return code


def _arm(at: int | None) -> None:
    """Count writes, and end this process at one of them."""

    def fatal() -> bool:
        _writes[0] += 1
        return at is not None and _writes[0] == at + 1

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if fatal():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    write_bytes = Path.write_bytes

    def write_half(path: Path, data: Any) -> int:
        if fatal():
            write_bytes(path, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write_bytes(path, data)

    for name in WRITES:
        setattr(os, name, before(getattr(os, name)))
    files._exchange = before(files._exchange)  # pyright: ignore[reportPrivateUsage]
    Path.write_bytes = write_half  # type: ignore[method-assign]


# What must hold after a kill


def problems_of(world: World, place: Path, command: Command) -> Iterator[str]:
    """What is lost or half-written."""
    library = Library(place / "home")
    found: dict[str, Identity] = {}
    for entry in library.entries():
        try:
            found[entry.name] = entry.load()
        except CelebctlError as error:
            yield f"{entry.name} does not load: {error}"
    digests = {identity.digest for identity in found.values()}
    for name, digest in world.people.items():
        if name in command.changes:
            if command.words.startswith("rename") and digest not in digests:
                yield f"{name} is lost"
        elif name not in found or found[name].digest != digest:
            yield f"{name} is lost or changed"
    for path in library.bundles():
        try:
            Bundle.open(path, verify="full")
        except CelebctlError as error:
            yield f"the bundle {path.name} is damaged: {error}"
    if not any(library.bundles()):
        yield "the bundle is gone"
    for path in (place / "here").rglob("*"):
        if path.is_file() and not path.name.startswith(".") and (error := _unreadable(path)):
            yield f"{path.name} is half-written: {error}"


def _unreadable(path: Path) -> str:
    from PIL import Image

    safe_open: Any = import_module("safetensors").safe_open
    try:
        if path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "numpy") as tensors:
                for name in list(tensors.keys()):
                    tensors.get_tensor(name)
    except Exception as error:
        return repr(error)
    return ""


def age_leftovers(place: Path) -> list[Path]:
    """Make what was left under hidden names two days old; returns it."""
    hidden = files.TEMPORARY
    left = [path for path in place.rglob(".*") if hidden.fullmatch(path.name)]
    then = time.time() - 2 * DAY
    for path in left:
        os.utime(path, (then, then), follow_symlinks=False)
    return left


def torture(world: World, command: Command, result: Result, **how: Any) -> None:
    """One kill and what has to hold afterwards."""
    place = world.copy()
    ended = world.run(place, command.words, **how)
    if ended.code != -signal.SIGKILL:
        result.early += 1
        if ended.code != 0:
            result.problems.append(f"{how}: exit code {ended.code} without a kill: {ended.errors[-300:]}")
        return
    result.kills += 1
    problems = [f"after the kill: {problem}" for problem in problems_of(world, place, command)]
    result.leftovers += len(age_leftovers(place))
    again = world.run(place, command.words)
    if again.code not in {0, *command.finished}:
        problems.append(f"again: exit code {again.code}: {again.errors[-300:]}")
    if again.code:  # it had nothing left to do: leftovers go with the next change
        world.run(place, "export --add carla")
    problems += [f"again: {problem}" for problem in problems_of(world, place, command)]
    problems += [f"again: {path.relative_to(place)} is left over" for path in age_leftovers(place)]
    result.problems += [f"{how}: {problem}" for problem in problems]


def measure(world: World, command: Command) -> Result:
    """Run a command without a kill."""
    place = world.copy()
    ended = world.run(place, command.words)
    result = Result(command.words, ended.writes, ended.seconds)
    if ended.code != 0:
        result.problems.append(f"exit code {ended.code} without a kill: {ended.errors[-300:]}")
    result.problems += [f"without a kill: {problem}" for problem in problems_of(world, place, command)]
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a table, and with --out write it as JSON; returns 1 when something was lost."""
    parser = argparse.ArgumentParser(description="Kill -9 at every write and at random moments.")
    parser.add_argument("--world", choices=("mini", "toy"), default="mini")
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments, over all commands")
    parser.add_argument("--no-writes", action="store_true", help="no kills at each write")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other kill after this time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", default="", help="commands that begin with this")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args(argv)
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="celebctl-torture-") as folder:
        results = torture_all(Path(folder), arguments)
    for result in results:
        print(f"{result.kills:4} kills  {result.writes:3} writes  {result.seconds:6.2f} s  {result.words}")
        for problem in result.problems:
            print(f"      {problem}")
    kills, lost = sum(result.kills for result in results), sum(bool(result.problems) for result in results)
    left = sum(result.leftovers for result in results)
    print(f"{kills} kills, {left} leftovers removed, {lost} of {len(results)} commands with a problem")
    if arguments.out is not None:
        document = {
            "seed": arguments.seed,
            "world": arguments.world,
            "kills": kills,
            "results": [vars(r) for r in results],
        }
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if lost else 0


def torture_all(folder: Path, arguments: argparse.Namespace) -> list[Result]:
    """Every command, killed at each of its writes, then commands in turn at random moments."""
    for module in ("celebctl.cli.app", *(("celebctl.model", "celebctl_export") if arguments.world == "mini" else ())):
        import_module(module)
    began, chance = time.perf_counter(), random.Random(arguments.seed)
    world = World(arguments.world, folder)
    print(f"the world took {time.perf_counter() - began:.0f} s", flush=True)
    commands = [c for c in COMMANDS if world.name in c.worlds and c.words.startswith(arguments.only)]
    results = [measure(world, command) for command in commands]
    plan: list[tuple[Command, Result, dict[str, Any]]] = []
    if not arguments.no_writes:
        plan += [(c, r, {"at": at}) for c, r in zip(commands, results, strict=True) for at in range(r.writes)]
    for number in range(arguments.kills):
        result = results[number % len(results)]
        plan.append((commands[number % len(commands)], result, {"after": chance.uniform(0, result.seconds)}))
    chance.shuffle(plan)  # so that a run of limited time has some of everything
    with contextlib.suppress(KeyboardInterrupt):
        for number, (command, result, how) in enumerate(plan, 1):
            if time.perf_counter() - began > arguments.seconds:
                break
            torture(world, command, result, **how)
            print(f"{number} of {len(plan)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
