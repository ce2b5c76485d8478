"""Remove every trace of a person from a library and its bundles, and search the files for what is left. Torch-free.

What lies outside is out of reach: images, contact sheets in other folders, exported embeddings, copies and backups.
"""

import contextlib
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from celebctl.bundles import model_key_of
from celebctl.library import SUFFIX, Library, check_model_key, is_model_key
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.files import TEMPORARY, translate_os_errors
from celebctl_runtime.identity import Identity, check_name

Kind = Literal["identity", "face reference", "bundle rows", "checkpoint", "contact sheet", "interrupted write", "lock"]

_WRITTEN = ("identities", "checkpoints", "sheets", "bundles", "cache")  # the areas that hold people
_OLD = 86_400.0  # seconds after which an unfinished file is abandoned, whatever process has its number now


@dataclass(frozen=True)
class Trace:
    """Something that is stored of a person.

    Attributes:
        kind: "identity"; "face reference": what the person is recognised by in drawn images; "bundle rows": those in
            the bundle at ``path``; "checkpoint" of interrupted learning; "contact sheet", which shows the photo;
            "interrupted write": an unfinished file of a killed process, of any person; "lock": an empty file with
            their name.
        path: The file or folder.
    """

    kind: Kind
    path: Path


@dataclass(frozen=True)
class Forgotten:
    """What `forget` did.

    Attributes:
        removed: In this order.
        searched_files: How many files were searched for the person's numbers afterwards; 0 when no identity could be
            read, so that there was nothing to search for.
        searched_bytes: Their size.
        left: Files that have the numbers: of identities under other names, or of damaged bundles.
        derived: Names of identities mixed from the person, which are kept.
        unsearched: Files and folders that could not be read.
    """

    removed: Sequence[Trace]
    searched_files: int
    searched_bytes: int
    left: Sequence[Path]
    derived: Sequence[str]
    unsearched: Sequence[Path] = ()


@dataclass
class _Searched:
    """What a search found: files searched and their size in bytes, those with the numbers, and those not readable."""

    files: int = 0
    size: int = 0
    left: list[Path] = field(default_factory=list[Path])
    unsearched: list[Path] = field(default_factory=list[Path])


def find_traces(library: Library, name: str, bundles: Sequence[Path] = (), model_key: str | None = None) -> list[Trace]:
    """What is stored of a person, in the order of removal.

    Args:
        library: Where to look.
        name: The person.
        bundles: Folders of more bundles.
        model_key: Only of this model.

    Raises:
        UsageError: An invalid name or model key.
        NotFoundError: A folder of ``bundles`` has no bundle.
        IntegrityError: A bundle among them is damaged. Damaged bundles of the library are skipped here.
    """
    wanted, root = check_name(name), library.root
    key = "*" if model_key is None else check_model_key(model_key)
    unfinished = [path for area in _WRITTEN for path in (root / area).rglob(".*") if _abandoned(path)]
    traces = [Trace("interrupted write", path) for path in unfinished]
    opened = [*_bundles_in(library), *(Bundle.open(path, verify="none") for path in bundles)]
    known = {name for bundle in opened for name in bundle.names}
    traces += [Trace("contact sheet", path) for path in library.sheets_of(wanted, known)]
    checkpoints = (root / "checkpoints").glob(f"{key}/*.checkpoint")
    traces += [Trace("checkpoint", path) for path in checkpoints if wanted in path.stem.split("+")]
    holding = [bundle for bundle in opened if _holds(bundle, wanted, model_key)]
    identities = list((root / "identities").glob(f"{key}/{wanted}{SUFFIX}"))
    digests = {person.digest for person in _readable(identities)}
    digests |= {bundle.manifest.identities[wanted].digest for bundle in holding if wanted in bundle.manifest.identities}
    traces += [Trace("face reference", path) for digest in sorted(digests) for path in library.face_references(digest)]
    traces += [Trace("bundle rows", bundle.path) for bundle in holding]
    traces += [Trace("identity", path) for path in identities]
    return traces + [Trace("lock", path) for path in (root / "locks").glob(f"{key}.{wanted}.lock")]


def forget(library: Library, name: str, bundles: Sequence[Path] = (), model_key: str | None = None) -> Forgotten:
    """Remove every trace of a person, then search for their numbers in every file of the library and of ``bundles``.

    A call that was interrupted can be repeated. Identities go last: the search needs their numbers.

    Args:
        library: Where to look.
        name: The person.
        bundles: Folders of more bundles.
        model_key: Only of this model.

    Raises:
        NotFoundError: There is no trace (reason "unknown_identity"), or as `find_traces`.
        BusyError: Another process is learning the person or changing a bundle.
        SetupError: A file cannot be removed.
        IntegrityError: A bundle among ``bundles`` is damaged.

    Example:
        >>> library = Library(folder / "library")
        >>> path = library.save(identity.renamed("bob"))
        >>> forget(library, "bob").removed[0].kind
        'identity'
        >>> path.exists()
        False
    """
    wanted = check_name(name)
    if not find_traces(library, wanted, bundles, model_key):
        library.find(wanted, model_key)  # raises
    with contextlib.ExitStack() as held:
        for key in _model_keys(library, wanted, model_key):
            held.enter_context(library.reserve([wanted], key))
        traces = find_traces(library, wanted, bundles, model_key)
        people = _readable(trace.path for trace in traces if trace.kind == "identity")
        features = _features(trace.path for trace in traces if trace.kind == "face reference")
        derived = _mixed_from(library, wanted)
        for trace in traces:
            _remove(trace, wanted)
        patterns = {pattern for person in people for pattern in _patterns(person)}
        if patterns:
            patterns.update(features)
        found = _search([library.root, *bundles], patterns) if patterns else _Searched()
    return Forgotten(traces, found.files, found.size, found.left, derived, found.unsearched)


def _bundles_in(library: Library) -> Iterator[Bundle]:
    for path in library.bundles():
        with contextlib.suppress(CelebctlError):  # the search afterwards reads damaged ones, too
            yield Bundle.open(path, verify="none")


def _holds(bundle: Bundle, name: str, model_key: str | None) -> bool:
    """Whether a bundle has rows of the person, or rows that a killed process left behind."""
    if model_key not in (None, model_key_of(bundle)):
        return False
    return name in bundle.manifest.identities or bool(bundle.manifest.pending_slots)


def _abandoned(path: Path) -> bool:
    """Whether a file or folder was being written by a process that has ended."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    if time.time() - path.lstat().st_mtime > _OLD:
        return True
    if os.name != "posix":
        return False  # a signal would end the process
    try:
        os.kill(int(found["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _model_keys(library: Library, name: str, model_key: str | None) -> list[str]:
    """The models for which the person may be stored, or be learned right now."""
    if model_key is not None:
        return [check_model_key(model_key)]
    root = library.root
    folders = [path for area in ("identities", "checkpoints") for path in (root / area).glob("*") if path.is_dir()]
    locks = (root / "locks").glob(f"*.{name}.lock")
    found = {path.name for path in folders} | {path.name.partition(".")[0] for path in locks}
    return sorted(filter(is_model_key, found))


def _readable(paths: Iterable[Path]) -> list[Identity]:
    people: list[Identity] = []
    for path in paths:
        with contextlib.suppress(CelebctlError):  # a damaged identity is removed all the same
            people.append(Identity.load(path))
    return people


def _mixed_from(library: Library, name: str) -> list[str]:
    """Names of the identities that were mixed from the person."""
    people = _readable(entry.path for entry in library.entries())
    parent = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    return [one.name for one in people if parent.search(one.provenance.get("mixed_from", ""))]


def _remove(trace: Trace, name: str) -> None:
    with translate_os_errors(trace.path):
        if trace.kind == "bundle rows":
            bundle = Bundle.open(trace.path, verify="none")
            if name in bundle.manifest.identities:
                bundle.remove(name)
            else:
                bundle.zero_pending()
        elif trace.path.is_dir():
            shutil.rmtree(trace.path)
        else:
            trace.path.unlink(missing_ok=True)


def _patterns(person: Identity) -> Iterator[bytes]:
    """The person's numbers as they may stand in a file: every row, in float32 and, of embeddings, in float16."""
    for array in (*person.embeddings, *person.coefficients):
        yield from (row.astype("<f4").tobytes() for row in array if row.any())
    with np.errstate(over="ignore"):
        for array in person.embeddings:
            yield from (half.tobytes() for half in array.astype("<f2") if half.any())


def _features(paths: Iterable[Path]) -> list[bytes]:
    """The numbers in face references; a damaged one is removed all the same."""
    features: list[bytes] = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError, EOFError):
            feature = np.load(path, allow_pickle=False)
            features += [feature.tobytes()] if feature.any() else []
    return features


def _search(folders: Iterable[Path], patterns: set[bytes]) -> _Searched:
    """Search every file below the folders; links are not followed."""
    found = _Searched()

    def skip(error: OSError) -> None:
        found.unsearched.append(Path(error.filename))

    for folder in folders:
        for place, _, names in os.walk(folder, onerror=skip):
            for path in (Path(place, name) for name in sorted(names)):
                try:
                    status = path.lstat()
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if status.st_size and _contains(path, patterns):
                        found.left.append(path)
                    found.files, found.size = found.files + 1, found.size + status.st_size
                except FileNotFoundError:
                    continue  # removed since the folder was listed
                except OSError:
                    found.unsearched.append(path)
    return found


def _contains(path: Path, patterns: Iterable[bytes]) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(pattern) >= 0 for pattern in patterns)
