"""Profile of one `celebctl gen` on the CPU at any size: seconds, page faults and memory of each part.

    python -m benchmarks.gen_profile mini                                  # a model: it is exported first
    python -m benchmarks.gen_profile BUNDLE --steps 2 --out result.json    # an exported bundle
    python -m benchmarks.true_size_model FOLDER && python -m benchmarks.gen_profile FOLDER --steps 2 --size 512x512

The last line is Stable Diffusion 1.5 at its true size: minutes, and 7 GB of disk.

One process generates as `gen` does, with the runtime alone, and is timed from its start. It opens each session when it
is first needed; `gen` opens sessions in the background. The wall time of `gen` itself is measured too: once with
hashing every file, as in the first run, and once without. A second image in the process shows which costs occur only
once.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from unittest.mock import patch

if TYPE_CHECKING:
    from celebctl_runtime.progress import Progress

HERE = Path(__file__).resolve().parent
COLUMNS = ("part", "seconds", "share", "page faults", "from disk", "memory MB")
IMAGES = 2
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Cost of one part, without that of the parts inside it.

    Attributes:
        faults: Page faults; from_disk: those that read from disk.
        memory_bytes: Resident memory at its end.
    """

    name: str
    seconds: float
    faults: int
    from_disk: int
    memory_bytes: int


class Profiler:
    """Parts in the order of their ends. Parts may be nested; an inner part is not counted in the outer one."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._nested: list[list[float]] = []

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Measure the block as a part."""
        self._nested.append([0.0, 0.0, 0.0])
        before = _usage()
        try:
            yield
        finally:
            total = _difference(_usage(), before)
            nested = self._nested.pop()
            if self._nested:
                self.subtract(total)
            self.add(name, *_difference(total, nested))

    def timed(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function with every call as a part."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def add(self, name: str, seconds: float, faults: float, from_disk: float) -> None:
        """Append a part that was measured elsewhere."""
        self.parts.append(Part(name, round(seconds, 5), int(faults), int(from_disk), resident_bytes()))

    def subtract(self, used: Sequence[float]) -> None:
        """Do not count ``used`` in the open part, because it is a part of its own."""
        self._nested[-1] = [sum(pair) for pair in zip(self._nested[-1], used, strict=True)]


class StepTimer:
    """Progress callback that measures each step from the end of the previous one or from `start`."""

    def __init__(self, profiler: Profiler) -> None:
        self.profiler, self.last = profiler, _usage()

    def start(self) -> None:
        self.last = _usage()

    def __call__(self, progress: Progress) -> None:
        used = _difference(_usage(), self.last)
        self.profiler.subtract(used)
        self.profiler.add(f"step {progress.step}", *used)
        self.last = _usage()


def _usage() -> tuple[float, float, float]:
    """Time in seconds, page faults, page faults that read from disk."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic(), float(used.ru_minflt + used.ru_majflt), float(used.ru_majflt)


def _difference(after: Sequence[float], before: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(after, before, strict=True)]


def resident_bytes() -> int:
    """Resident memory; 0 on systems without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def profile(path: Path, fields: dict[str, Any], threads: int | None, out: Path, started: float) -> dict[str, Any]:
    """Generate ``IMAGES`` images in this process as `gen` does. fields: of the requests; started: of this process."""
    profiler = Profiler()
    profiler.add("start of Python", time.monotonic() - started, *_usage()[1:])
    with profiler.part("importing the runtime"):
        from celebctl_runtime.backends import ort
        from celebctl_runtime.bundle.bundle import Bundle
        from celebctl_runtime.picture import GeneratedImage, save_image
        from celebctl_runtime.pipeline import generate
        from celebctl_runtime.request import Request
    with profiler.part("importing ONNX Runtime"):
        from celebctl_runtime.backends.ort_session import load_onnxruntime, open_session

        load_onnxruntime()
    with profiler.part("opening the bundle"):
        bundle = Bundle.open(path, verify="quick")
    with profiler.part("hashing every file (first time only)"):
        bundle.verify("full")
    with profiler.part("tokenizer"):
        bundle.tokenizer()
    steps = StepTimer(profiler)

    def open_timed(module: Any, file: Path, *options: Any) -> Any:
        session = profiler.timed(f"session of {file.name}", open_session)(module, file, *options)
        steps.start()
        return session

    backend = ort.OrtBackend(bundle, "cpu", threads)
    denoise = backend.denoise

    def denoise_timed(*args: Any) -> Any:
        steps.start()
        return denoise(*args)

    methods: dict[str, Callable[..., object]] = {
        "encode": profiler.timed("encoding texts", backend.encode),
        "denoise": profiler.timed("preparing the steps", denoise_timed),
        "decode": profiler.timed("decoding", backend.decode),
    }
    for name, method in methods.items():
        setattr(backend, name, method)
    parts: list[list[Part]] = []
    seconds: list[float] = []
    images: list[GeneratedImage] = []
    with patch.object(ort, "open_session", open_timed):
        for seed in range(1, IMAGES + 1):
            with profiler.part(f"image {seed}: all other"):
                images += generate(bundle, backend, Request(seed=seed, **fields), steps)
            profiler.timed("writing the PNG", save_image)(images[-1], out / f"{seed}.png", overwrite=True)
            parts.append(profiler.parts)
            seconds.append(time.monotonic() - started)
            profiler.parts = []
    request = images[-1].request.to_json()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "request": {key: request[key] for key in ("prompt", "steps", "width", "height", "guidance")},
        "backend": backend.describe(),
        "seconds": round(seconds[0], 4),
        "first": [asdict(part) for part in parts[0]],
        "second": [asdict(part) for part in parts[1]],
        "peak_bytes": peak,
    }


def export_if_model(model_or_bundle: str, folder: Path) -> Path:
    """The bundle folder itself, or a new bundle of the model."""
    from benchmarks.processes import run

    if (Path(model_or_bundle) / "manifest.json").is_file():
        return Path(model_or_bundle).resolve()
    arguments = ["--json", "export", "--model", model_or_bundle, "--out", str(folder / "bundle")]
    return Path(run([sys.executable, "-m", "celebctl", *arguments], folder).output["path"])


def run_command(bundle: Path, fields: dict[str, Any], threads: int | None, folder: Path) -> list[dict[str, Any]]:
    """Costs of two runs of `celebctl gen`; the first hashes every file."""
    from benchmarks.processes import run

    command = [sys.executable, "-m", "celebctl", "--json", "gen", fields["prompt"], "--seed", "1", "--device", "cpu"]
    command += ["--steps", str(fields["steps"]), "--bundle", str(bundle), "-o", "image.png", "--force"]
    command += ["--threads", str(threads)] if threads else []
    if fields.get("width"):
        command += ["--size", f"{fields['width']}x{fields['height']}"]
    runs = [run(command, folder) for _ in range(2)]
    return [{"seconds": round(one.seconds, 4), "peak_bytes": one.peak_bytes} for one in runs]


def table(parts: list[dict[str, Any]]) -> list[str]:
    """Lines of a text table."""
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
    parser.add_argument("--note", default="", help="remark stored with the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child = json.loads(args.child)
        print(
            json.dumps(profile(Path(args.model), child["fields"], args.threads, Path(child["out"]), child["started"]))
        )
        return 0
    from benchmarks.processes import machine, run

    fields: dict[str, Any] = {"prompt": args.prompt, "steps": args.steps}
    if args.size:
        fields["width"], fields["height"] = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="gen-profile-") as name:
        folder = Path(name)
        bundle = export_if_model(args.model, folder)
        child = {"fields": fields, "out": str(folder), "started": time.monotonic()}
        command = [sys.executable, str(Path(__file__).resolve()), str(bundle), "--child", json.dumps(child)]
        command += ["--threads", str(args.threads)] if args.threads else []
        output = run(command, folder).output
        results = {"note": args.note, "machine": machine(), "bundle_bytes": _bytes(bundle), **output}
        results["as_command"] = run_command(bundle, fields, args.threads, folder)
    request = output["request"]
    print(f"{request['width']}x{request['height']}, {request['steps']} steps, guidance {request['guidance']}")
    for number in ("first", "second"):
        print("", f"the {number} image of a process", *table(output[number]), sep="\n")
    first, second = (one["seconds"] for one in results["as_command"])
    print(f"\ncelebctl gen: {first:.2f} s the first time, with hashing; then {second:.2f} s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
