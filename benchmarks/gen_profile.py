"""Where the time of one `celebctl gen` goes on the CPU, part by part, at any size: seconds, page faults and memory.

    python -m benchmarks.gen_profile mini                                  # a model: it is exported first
    python -m benchmarks.gen_profile BUNDLE --steps 2 --out result.json    # a bundle, as `celebctl export` makes them
    python -m benchmarks.true_size_model FOLDER && python -m benchmarks.gen_profile FOLDER --steps 2 --size 512x512

The last line is Stable Diffusion 1.5 at its true size: minutes, and 7 GB of disk.

One process draws the way `gen` does, through the runtime alone, and is timed from its start on. Sessions are opened one
after the other when they are first needed; `gen` itself opens them beside other work. Its wall time is measured beside:
once with hashing every file, as the first time, and once without. The second picture of the process shows what only the
first one pays.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parent
COLUMNS = ("part", "seconds", "share", "page faults", "from disk", "memory MB")
PICTURES = 2


@dataclass(frozen=True)
class Part:
    """One part, without the parts inside it. faults: pages that came into memory, of them from_disk by reading;
    memory_bytes: resident at its end."""

    name: str
    seconds: float
    faults: int
    from_disk: int
    memory_bytes: int


class Watch:
    """Parts in the order of their ends. They may lie in each other; what is inside counts once."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._inside: list[list[float]] = []

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        self._inside.append([0.0, 0.0, 0.0])
        before = _now()
        try:
            yield
        finally:
            whole = [after - start for after, start in zip(_now(), before, strict=True)]
            inside = self._inside.pop()
            if self._inside:
                self.count(whole)
            self.add(name, *(all_of_it - part for all_of_it, part in zip(whole, inside, strict=True)))

    def add(self, name: str, seconds: float, faults: float, from_disk: float) -> None:
        self.parts.append(Part(name, round(seconds, 5), int(faults), int(from_disk), resident_bytes()))

    def count(self, spent: Sequence[float]) -> None:
        """What is spent inside the part that is open now, and is one of its own."""
        self._inside[-1] = [sum(pair) for pair in zip(self._inside[-1], spent, strict=True)]


class Steps:
    """What hears of each step: from one to the next, the first from `begin` on, after its session was opened."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.last = watch, _now()

    def begin(self) -> None:
        self.last = _now()

    def __call__(self, now: Any) -> None:
        after = _now()
        spent = [one - other for one, other in zip(after, self.last, strict=True)]
        self.watch.count(spent)
        self.watch.add(f"step {now.step}", *spent)
        self.last = _now()


def _now() -> tuple[float, float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic(), float(used.ru_minflt + used.ru_majflt), float(used.ru_majflt)


def resident_bytes() -> int:
    """What is in memory now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def draw(path: Path, wanted: dict[str, Any], threads: int | None, out: Path, started: float) -> dict[str, Any]:
    """In the process that draws: everything `gen` does, in order."""
    watch = Watch()
    watch.add("start of Python", time.monotonic() - started, *_now()[1:])
    with watch.part("importing the runtime"):
        from celebctl_runtime.backends import ort
        from celebctl_runtime.bundle.bundle import Bundle
        from celebctl_runtime.picture import save_image
        from celebctl_runtime.pipeline import generate
        from celebctl_runtime.request import Request
    with watch.part("importing ONNX Runtime"):
        from celebctl_runtime.backends.ort_session import load_onnxruntime

        load_onnxruntime()
    with watch.part("opening the bundle"):
        bundle = Bundle.open(path, verify="quick")
    with watch.part("hashing every file (first time only)"):
        bundle.verify("full")
    with watch.part("tokenizer"):
        bundle.tokenizer()
    steps, plain = Steps(watch), cast(Any, ort).open_session

    def open_watched(ort: Any, file: Path, *rest: Any) -> Any:
        with watch.part(f"session of {file.name}"):
            session = plain(ort, file, *rest)
        steps.begin()
        return session

    cast(Any, ort).open_session = open_watched

    class Watched(ort.OrtBackend):
        def encode(self, *given: Any) -> Any:
            with watch.part("encoding texts"):
                return super().encode(*given)

        def denoise(self, *given: Any) -> Any:
            with watch.part("steps: getting ready"):
                steps.begin()
                return super().denoise(*given)

        def decode(self, latent: Any) -> Any:
            with watch.part("decoding"):
                return super().decode(latent)

    backend = Watched(bundle, "cpu", threads)
    for seed in range(1, PICTURES + 1):
        with watch.part(f"picture {seed}: the rest"):
            (picture,) = generate(bundle, backend, Request(seed=seed, **wanted), steps)
        with watch.part("writing the PNG"):
            save_image(picture, out / f"{seed}.png", overwrite=True)
        if seed == 1:
            first, seconds = len(watch.parts), time.monotonic() - started
    parts = [asdict(part) for part in watch.parts]
    request = {key: picture.request.to_json()[key] for key in ("prompt", "steps", "width", "height", "guidance")}
    return {
        "request": request, "backend": backend.describe(), "seconds": round(seconds, 4),
        "first": parts[:first], "second": parts[first:],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }  # fmt: skip


def exported(given: str, folder: Path) -> Path:
    """The bundle that was given, or a fresh one of the model that was."""
    from benchmarks.processes import run

    if (Path(given) / "manifest.json").is_file():
        return Path(given).resolve()
    words = [sys.executable, "-m", "celebctl", "--json", "export", "--model", given, "--out", str(folder / "bundle")]
    return Path(run(words, folder).said["path"])


def as_command(bundle: Path, wanted: dict[str, Any], threads: int | None, folder: Path) -> list[dict[str, Any]]:
    """`celebctl gen` itself: the first time, when every file is hashed, and again."""
    from benchmarks.processes import run

    words = [sys.executable, "-m", "celebctl", "--json", "gen", wanted["prompt"], "--seed", "1", "--device", "cpu"]
    words += ["--steps", str(wanted["steps"]), "--bundle", str(bundle), "-o", "drawn.png", "--force"]
    words += ["--threads", str(threads)] if threads else []
    if wanted.get("width"):
        words += ["--size", f"{wanted['width']}x{wanted['height']}"]
    runs = [run(words, folder) for _ in range(2)]
    return [{"seconds": round(one.seconds, 4), "peak_bytes": one.peak_bytes} for one in runs]


def table(parts: list[dict[str, Any]]) -> list[str]:
    """Lines for people."""
    total = sum(part["seconds"] for part in parts)
    rows = [
        (
            part["name"], f"{part['seconds']:.3f}", f"{100 * part['seconds'] / total:.1f}%", f"{part['faults']}",
            f"{part['from_disk']}", f"{part['memory_bytes'] / 1e6:.0f}",
        )
        for part in parts
    ]  # fmt: skip
    rows = [COLUMNS, *rows, ("all", f"{total:.3f}", "", "", "", "")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_OR_BUNDLE")
    parser.add_argument("--prompt", default="a photo of a person")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", help="WxH; default: the model's own")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gen_profile.json")
    parser.add_argument("--note", default="", help="what to know about these figures, kept with them")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        given = json.loads(args.child)
        said = draw(Path(args.model), given["wanted"], args.threads, Path(given["out"]), given["started"])
        print(json.dumps(said))
        return 0
    from benchmarks.processes import machine, run

    wanted: dict[str, Any] = {"prompt": args.prompt, "steps": args.steps}
    if args.size:
        wanted["width"], wanted["height"] = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="gen-profile-") as name:
        folder = Path(name)
        bundle = exported(args.model, folder)
        child = {"wanted": wanted, "out": str(folder), "started": time.monotonic()}
        words = [sys.executable, str(Path(__file__).resolve()), str(bundle), "--child", json.dumps(child)]
        words += ["--threads", str(args.threads)] if args.threads else []
        said = run(words, folder).said
        figures = {"note": args.note, "machine": machine(), "bundle_bytes": _bytes(bundle), **said}
        figures["as_command"] = as_command(bundle, wanted, args.threads, folder)
    request = said["request"]
    print(f"{request['width']}x{request['height']}, {request['steps']} steps, guidance {request['guidance']}")
    for which in ("first", "second"):
        print("", f"the {which} picture of a process", *table(said[which]), sep="\n")
    hashed, again = (one["seconds"] for one in figures["as_command"])
    print(f"\ncelebctl gen: {hashed:.2f} s the first time, with hashing; then {again:.2f} s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
