"""TensorRT engines in the user's cache folder: their records, and the choice of one by input shapes.

    <engines>/<key>/step-b1-512x512.plan    a serialized engine
    <engines>/<key>/engine.json             its EngineRecord, written last
    <engines>/timing.cache                  TensorRT's timing cache, which speeds up the next build

Deserializing a plan can run code in it. Engines are therefore loaded only from this folder (mode 0700), never from a
bundle, which may be a download. The key hashes everything an engine depends on: bundles with the same graphs share
engines, and adding a person changes none. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celebctl_runtime.bundle.manifest import GraphInfo, Manifest
from celebctl_runtime.errors import NotFoundError
from celebctl_runtime.files import atomic_write, translate_os_errors
from celebctl_runtime.strict_json import parse_json

RECORD, TIMING_CACHE = "engine.json", "timing.cache"
# Part of the key: how celebctl_export.to_tensorrt builds.
_BUILD = "strongly typed, no TF32, decomposable attention"

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]  # minimum, optimum, maximum


@dataclass(frozen=True)
class Machine:
    """TensorRT version and GPU: an engine runs only where it was built."""

    tensorrt: str
    gpu: str
    compute_capability: str

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} ({self.compute_capability})"


@dataclass(frozen=True)
class Profile:
    """A TensorRT optimization profile: a graph of the manifest, and the range of each of its inputs' shapes."""

    graph: str
    shapes: Mapping[str, ShapeRange]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes are within the ranges."""
        return shapes.keys() == self.shapes.keys() and all(
            _within(shape, *self.shapes[name]) for name, shape in shapes.items()
        )

    @property
    def slack(self) -> int:
        """Sum of maximum minus minimum over all axes: 0 for a profile of one set of shapes."""
        return sum(sum(largest) - sum(smallest) for smallest, _, largest in self.shapes.values())


@dataclass(frozen=True)
class EngineRecord:
    """A built engine.

    Attributes:
        file: Name in the folder of its key.
        onnx_sha256: See :func:`onnx_sha256`.
        profiles: In the engine's order.
        machine: Where it was built.
        seconds: Build time; 0 if an interrupted earlier build left it to be measured.
        parity: Errors of its outputs against ONNX Runtime.
    """

    file: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    machine: Machine
    seconds: float = 0.0
    parity: tuple[Mapping[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Name of the engine's folder."""
        return engine_key(self.onnx_sha256, self.profiles, self.machine)

    def write(self, engines: Path) -> None:
        """Write ``engine.json`` beside the engine, which makes it visible."""
        atomic_write(engines / self.key / RECORD, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> EngineRecord:
        """Read ``engine.json``. Raises OSError; ValueError, TypeError or KeyError for other content."""
        data: dict[str, Any] = parse_json(path.read_bytes())
        profiles = tuple(
            Profile(profile["graph"], {name: _shape_range(*shapes) for name, shapes in profile["shapes"].items()})
            for profile in data.pop("profiles")
        )
        machine, parity = Machine(**data.pop("machine")), tuple(data.pop("parity"))
        return cls(**data, profiles=profiles, machine=machine, parity=parity)


def onnx_sha256(manifest: Manifest, graph: GraphInfo) -> str:
    """Hash of a graph file and its weights, without the token table, which is an input of an engine."""
    tables = {table.file for table in manifest.token_tables}
    files = sorted({graph.file, *graph.data} - tables)
    return hashlib.sha256("\n".join(f"{name} {manifest.files[name].sha256}" for name in files).encode()).hexdigest()


def engine_key(onnx_sha256: str, profiles: Iterable[Profile], machine: Machine) -> str:
    """Hash of the graph, the profiles, the machine and the build options; 16 hex digits."""
    content = [_BUILD, onnx_sha256, [asdict(profile) for profile in profiles], asdict(machine)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shape_range(smallest: list[int], optimum: list[int], largest: list[int]) -> ShapeRange:
    return tuple(smallest), tuple(optimum), tuple(largest)


def _within(shape: Shape, smallest: Shape, _optimum: Shape, largest: Shape) -> bool:
    return len(shape) == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )


def make_folder(engines: Path) -> None:
    """Create the cache folder, accessible to its owner only (mode 0700). Raises SetupError."""
    with translate_os_errors(engines):
        engines.mkdir(mode=0o700, parents=True, exist_ok=True)
        engines.chmod(0o700)


def read_records(engines: Path, manifest: Manifest) -> list[EngineRecord]:
    """All engines of a bundle's graphs, for any machine; unreadable records are skipped."""
    paths = sorted(engines.glob(f"*/{RECORD}"))
    hashes = {onnx_sha256(manifest, graph) for graph in manifest.graphs.values()} if paths else set[str]()
    records: list[EngineRecord] = []
    for path in paths:
        try:
            record = EngineRecord.read(path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if record.onnx_sha256 in hashes and path.parent.name == record.key and (path.parent / record.file).is_file():
            records.append(record)
    return records


def find_records(engines: Path, manifest: Manifest, machine: Machine) -> list[EngineRecord]:
    """The engines of a bundle's graphs for this machine. Raises NotFoundError, naming machines that have some."""
    records = read_records(engines, manifest)
    usable = [record for record in records if record.machine == machine]
    if not usable:
        others = ", ".join(sorted({str(record.machine) for record in records}))
        problem = f"no engines for {machine}" + (f"; there are engines for {others}" if others else "")
        raise NotFoundError(problem, "build them with build_engines", reason="no_engines", machine=machine)
    return usable


def choose_engine(
    records: Iterable[EngineRecord], graph: str, shapes: Mapping[str, Shape]
) -> tuple[EngineRecord, int] | None:
    """The engine and the index of its profile with the narrowest range that includes these shapes, or None."""
    fitting = [
        (profile.slack, record.file, record, index)
        for record in records
        for index, profile in enumerate(record.profiles)
        if profile.graph == graph and profile.fits(shapes)
    ]
    return min(fitting, key=lambda entry: entry[:2])[2:] if fitting else None
