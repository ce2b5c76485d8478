"""Which TensorRT engines lie in a bundle, for which machine, and whether we built them.

    <bundle>/engines/<key>/step-b1-512x512.plan, ...    serialized engines
    <bundle>/engines/<key>/engines.json                 what they are, sealed
    <bundle>/engines/<key>/timing.cache                 makes the next build of this machine faster

The key is a hash of the ONNX graphs, TensorRT's version, the GPU's name and its compute capability: engines for several
kinds of machine lie beside each other. The bundle's manifest does not list them, so it stays valid without them, and
a new person changes none.

Deserializing a plan runs what is in it, so only plans that this user built are ever loaded: engines.json carries an
HMAC under a key that stays outside the bundle (copy the key file to machines that are to share engines), and each
plan must have the hash that engines.json gives it. What this module does not know: TensorRT and CUDA themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from .errors import IntegrityProblem, NotFound
from .files import atomic_write, regular_path
from .manifest import GraphFacts, Manifest
from .schedule import ScheduleConfig

FOLDER, FILE_NAME, TIMING_CACHE = "engines", "engines.json", "timing.cache"
SCHEMA = 1
TABLE_INPUT = "token_table"
_TEXT_ENCODER = re.compile(r"text_encoder(?:_(\d+))?")
_KEY_BYTES = 32

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]  # least, the one tuned for, largest


@dataclass(frozen=True)
class Machine:
    """What an engine is bound to: it runs nowhere else."""

    tensorrt: str
    gpu: str
    compute_capability: str

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} ({self.compute_capability})"


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the graph of the manifest that it serves, and the shapes each input may have."""

    graph: str
    shapes: Mapping[str, ShapeRange]

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes can run in this profile."""
        return shapes.keys() == self.shapes.keys() and all(
            len(shape) == len(self.shapes[name][0])
            and all(
                low <= size <= high
                for low, size, high in zip(self.shapes[name][0], shape, self.shapes[name][2], strict=True)
            )
            for name, shape in shapes.items()
        )

    @property
    def slack(self) -> int:
        """How much it leaves open: 0 for a profile tuned for exactly one set of shapes."""
        return sum(high - low for least, _, most in self.shapes.values() for low, high in zip(least, most, strict=True))


@dataclass(frozen=True)
class EngineRecord:
    """A built engine: its file and the file's SHA-256, the hash of the ONNX graph it came from, its profiles in order,
    how long building took, and how far its outputs were from ONNX Runtime's."""

    file: str
    sha256: str
    onnx_sha256: str
    profiles: tuple[Profile, ...]
    seconds: float = 0.0
    parity: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineRecord:
        """The inverse of ``dataclasses.asdict``, for data whose seal has been checked."""
        profiles = tuple(
            Profile(entry["graph"], {name: _range(shapes) for name, shapes in entry["shapes"].items()})
            for entry in data["profiles"]
        )
        rest = {key: value for key, value in data.items() if key not in ("profiles", "parity")}
        return cls(**rest, profiles=profiles, parity=tuple(data["parity"]))


def _range(shapes: Sequence[Sequence[int]]) -> ShapeRange:
    least, best, most = (tuple(shape) for shape in shapes)
    return least, best, most


def onnx_sha256(manifest: Manifest, graph: GraphFacts) -> str:
    """A hash of a graph and its weights. The token table is no part of it: for an engine it is an input."""
    tables = {table.file for table in manifest.token_tables}
    files = sorted({graph.file, *graph.data} - tables)
    return hashlib.sha256("\n".join(f"{name} {manifest.files[name].sha256}" for name in files).encode()).hexdigest()


def engine_key(manifest: Manifest, machine: Machine) -> str:
    """The name of the folder that engines of these graphs for this machine lie in."""
    graphs = sorted({onnx_sha256(manifest, graph) for graph in manifest.graphs.values()})
    return hashlib.sha256("\n".join([*graphs, *asdict(machine).values()]).encode()).hexdigest()[:16]


def engine_folder(bundle: Path, key: str) -> Path:
    """Where the engines with this key lie. Raises IntegrityProblem when a link leads there."""
    return regular_path(bundle, f"{FOLDER}/{key}/{FILE_NAME}").parent


def has_engines(bundle: Path) -> bool:
    """Whether any machine's engines lie in the bundle. Costs next to nothing."""
    return any((bundle / FOLDER).glob(f"*/{FILE_NAME}"))


def encoder_number(graph: str) -> int | None:
    """Which text encoder a graph is, counted from 0 as the token tables are; None for other graphs."""
    found = _TEXT_ENCODER.fullmatch(graph)
    return None if found is None else int(found[1] or 1) - 1


def table_rows(manifest: Manifest) -> int:
    """Rows that a sampler's tables are filled up to, so that engines need not be built for every number of steps."""
    return ScheduleConfig.from_dict(manifest.scheduler).num_train_timesteps


def read_seal_key(path: Path) -> bytes:
    """The key that engines are sealed with. Raises NotFound when this user has built none yet."""
    try:
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise NotFound("no TensorRT engine was built here yet", "celebctl export --trt") from error
    except ValueError as error:
        raise IntegrityProblem(f"{path} is damaged", "delete it and run celebctl export --trt") from error


def make_seal_key(path: Path) -> bytes:
    """The same, made of fresh random bytes where there is none; the file is its owner's alone."""
    if not path.exists():

        def write(file: Path) -> None:
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(_KEY_BYTES), encoding="ascii")

        atomic_write(path, write)
    return read_seal_key(path)


def write_records(folder: Path, machine: Machine, records: Iterable[EngineRecord], seal_key: bytes) -> None:
    """Publish what lies in ``folder``, in one step."""
    content = {
        "schema_version": SCHEMA,
        "machine": asdict(machine),
        "engines": [asdict(record) for record in records],
    }
    document = {**content, "seal": _seal(content, seal_key)}
    atomic_write(folder / FILE_NAME, (json.dumps(document, indent=1) + "\n").encode())


def read_records(folder: Path, seal_key: bytes) -> list[EngineRecord]:
    """The engines in ``folder``. Raises NotFound when there are none, IntegrityProblem when somebody else wrote it."""
    path = folder / FILE_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there are no engines at {folder}", "celebctl export --trt builds them") from error
    try:
        document: Any = json.loads(raw)
        content = {key: value for key, value in cast("dict[str, Any]", document).items() if key != "seal"}
        sealed = hmac.compare_digest(str(document["seal"]), _seal(content, seal_key))
    except (ValueError, TypeError, KeyError, AttributeError):
        sealed, content = False, {}
    if not sealed or content.get("schema_version") != SCHEMA:
        raise IntegrityProblem(f"{path} was not written by you on this machine", "celebctl export --trt builds anew")
    return [EngineRecord.from_json(record) for record in content["engines"]]


def find_records(
    bundle: Path, manifest: Manifest, machine: Machine, seal_key: bytes
) -> tuple[Path, list[EngineRecord]]:
    """The folder and the engines of these graphs for this machine.

    Raises NotFound, naming the machines that engines are there for, and IntegrityProblem as :func:`read_records`.
    """
    folder = engine_folder(bundle, engine_key(manifest, machine))
    if not (folder / FILE_NAME).is_file():
        others = _other_machines(bundle)
        there = f"; there are engines for {', '.join(others)}, or of another export" if others else ""
        raise NotFound(f"{bundle} has no engines for {machine}{there}", "celebctl export --trt builds them")
    known = {onnx_sha256(manifest, graph) for graph in manifest.graphs.values()}
    return folder, [record for record in read_records(folder, seal_key) if record.onnx_sha256 in known]


def keep_engines(old: Path, new: Path, manifest: Manifest) -> list[str]:
    """Take the engines along when a bundle is exported anew with the same graphs; returns the keys of those kept.

    ``old`` and ``new``: the bundles' directories, ``manifest`` the new one's. Engines are linked, not copied, where the
    file system can. Nothing is trusted here: seals and hashes are checked when an engine is loaded.
    """
    known, kept = {onnx_sha256(manifest, graph) for graph in manifest.graphs.values()}, list[str]()
    for path in sorted((old / FOLDER).glob(f"*/{FILE_NAME}")):
        try:
            built = {str(record["onnx_sha256"]) for record in json.loads(path.read_bytes())["engines"]}
        except (ValueError, TypeError, KeyError):
            continue
        if built and built <= known:
            shutil.copytree(path.parent, engine_folder(new, path.parent.name), copy_function=_link)
            kept.append(path.parent.name)
    return kept


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_plan(folder: Path, record: EngineRecord) -> bytes:
    """An engine's bytes, proven to be those that were built. Raises IntegrityProblem."""
    path = folder / record.file
    try:
        plan = path.read_bytes()
    except FileNotFoundError as error:
        raise IntegrityProblem(f"{path} is missing", "celebctl export --trt builds it anew") from error
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise IntegrityProblem(f"{path} is not what was built", "celebctl export --trt builds it anew")
    return plan


def choose(records: Iterable[EngineRecord], graph: str, shapes: Mapping[str, Shape]) -> tuple[EngineRecord, int] | None:
    """The engine and profile that are tuned most closely for inputs of these shapes, or None."""
    fitting = [
        (profile.slack, record.file, record, index)
        for record in records
        for index, profile in enumerate(record.profiles)
        if profile.graph == graph and profile.fits(shapes)
    ]
    return min(fitting, key=lambda entry: entry[:2])[2:] if fitting else None


def _seal(content: Mapping[str, Any], seal_key: bytes) -> str:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(seal_key, plain.encode(), hashlib.sha256).hexdigest()


def _other_machines(bundle: Path) -> list[str]:
    """Machines that engines were built for; only for a message, so nothing here is trusted."""
    found: set[str] = set()
    for path in (bundle / FOLDER).glob(f"*/{FILE_NAME}"):
        try:
            facts = json.loads(path.read_bytes())["machine"]
            found.add(str(Machine(**{key: str(value)[:64] for key, value in facts.items()})))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return sorted(found)
