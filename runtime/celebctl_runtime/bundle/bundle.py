"""A bundle: a directory with everything generation needs, and the people stored in it.

Adding and removing a person touches no graph. Each person has a *slot*: two spare rows of every token table. The tables
are raw files that the text encoder's graph refers to and ONNX Runtime maps into memory, so a session that another
process opened earlier may see a row change. Every change therefore follows this order, under one file lock:

1. Publish a manifest (atomic rename) that declares the slots about to be written as *pending*.
2. Write only rows that no published name uses, and flush them to the disk.
3. Publish the manifest that adds or drops the name.
4. Zero the rows that became free, flush, and publish once more without pending slots.

A reader of any manifest thus finds every row it names complete and unchanged for as long as that manifest is the
published one. A reader that encodes a prompt and *then* finds the manifest unchanged has used the embeddings it meant
to (pipeline.py checks this and retries). A killed process leaves pending slots, which full verification accepts and the
next change zeroes. Free slots are used in turn, so that the rows of a removed person stay zero for as long as possible.
Replacing a person writes a new slot, never the old one.

Hashes: a token table's entry in ``files`` covers the vocabulary only and never changes; the rows of each person have
their own SHA-256; free spare rows must be zero. So every byte is verified, and adding a person hashes a few KiB.

Bundles may come from untrusted sources. All files are regular files inside the folder: a symbolic link, device or pipe
is refused, and so is a write to a table with a second hard link or past the end of its file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from os import SEEK_END
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from celebctl_runtime.errors import BusyError, IntegrityError, NotFoundError, SetupError, UsageError
from celebctl_runtime.files import atomic_write, flush, open_regular, regular_path, sha256_file, translate_os_errors
from celebctl_runtime.identity import TOKENS, Identity
from celebctl_runtime.private_files import is_private, restrict
from celebctl_runtime.sampling.schedule import ScheduleConfig

from .manifest import FILE_NAME, FileEntry, IdentityEntry, Manifest, TokenTable

if TYPE_CHECKING:
    from celebctl_runtime.prompting.tokenizer import PromptTokenizer

Verify = Literal["quick", "full", "none"]

_LOCK_NAME = f"{FILE_NAME}.lock"
_LOCK_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Bundle:
    """An opened bundle.

    Adding, replacing and removing people takes milliseconds, is safe under concurrent readers and writers, and leaves a
    complete bundle when the process is killed. Bundles are created by ``celebctl_export.export_bundle``.

    Attributes:
        path: The bundle's directory.
        manifest: The manifest as last read; :meth:`refresh` reads it again if it changed on disk.

    Example:
        >>> bundle = Bundle.open(bundle_path)
        >>> bundle.add(identity.renamed("bob"))
        >>> bundle.names
        ('alice', 'bob')
    """

    def __init__(self, path: Path, manifest: Manifest, stamp: tuple[int, ...]) -> None:
        self.path = path
        self._manifest = manifest
        self._stamp = stamp
        self._tokenizer: tuple[str, PromptTokenizer] | None = None  # of the export with this fingerprint

    @classmethod
    def open(cls, path: Path, verify: Verify = "quick") -> Bundle:
        """Open the bundle at ``path``.

        Args:
            path: The bundle's directory, or a link to it.
            verify: How much to check, see :meth:`verify`.

        Raises:
            NotFoundError: When there is no bundle.
            IntegrityError: When it is damaged or was written by a newer version.
        """
        bundle = cls(path, *_read(path))
        bundle.verify(verify)
        return bundle

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Bundle:
        """Finish a newly written bundle: hash every file of the directory ``path`` and write its manifest.

        Args:
            path: The directory with graphs, token tables and tokenizer.
            manifest: ``files`` may be empty. People already in the token tables must be listed in ``identities``; the
                SHA-256 of their rows is filled in.

        Raises:
            IntegrityError: When tables and manifest disagree.
        """
        covers = {table.file: table.first_spare_row * table.row_bytes for table in manifest.token_tables}
        files: dict[str, FileEntry] = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in (FILE_NAME, _LOCK_NAME):
                count = covers.get(name, 0)
                files[name] = FileEntry(sha256_file(file, count or None), file.stat().st_size, count)
        identities = {
            name: replace(entry, rows_sha256=_sha256(_read_rows(path, manifest, entry.rows)))
            for name, entry in manifest.identities.items()
        }
        complete = replace(manifest, files=files, identities=identities).to_bytes()
        Manifest.from_bytes(complete)  # raises when tables and manifest disagree
        atomic_write(path / FILE_NAME, complete)
        return cls.open(path, verify="quick")

    @property
    def manifest(self) -> Manifest:
        """The manifest as last read."""
        return self._manifest

    @property
    def schedule(self) -> ScheduleConfig:
        """The model's noise schedule."""
        return ScheduleConfig.from_dict(self._manifest.scheduler)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the people in the bundle, sorted."""
        return tuple(sorted(self._manifest.identities))

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Name -> the token ids that stand for the person (row numbers of the first text encoder's table)."""
        return {name: entry.rows[0] for name, entry in self._manifest.identities.items()}

    def file(self, name: str) -> Path:
        """The path of a file in the bundle, existing or not. Raises IntegrityError for a link or other special file."""
        return regular_path(self.path, name)

    def free_rows(self) -> list[tuple[tuple[int, int], ...]]:
        """The rows of every free slot, a pair per token table; the slot that is used next comes first."""
        taken = {pair for entry in self._manifest.identities.values() for pair in enumerate(entry.rows)}
        start, count = self._manifest.next_slot, self._manifest.slot_count
        slots = (self._slot_rows((start + i) % count) for i in range(count))
        return [rows for rows in slots if taken.isdisjoint(enumerate(rows))]

    def embeddings(self, name: str) -> tuple[NDArray[np.float32], ...]:
        """The token embeddings of a person in the bundle, E arrays (2, D) float32."""
        manifest = self._manifest
        rows = _read_rows(self.path, manifest, manifest.identities[name].rows)
        arrays: list[NDArray[np.float32]] = []
        for number, table in enumerate(manifest.token_tables):
            stored = np.frombuffer(b"".join(rows[TOKENS * number : TOKENS * (number + 1)]), table.numpy_dtype)
            arrays.append(stored.reshape(TOKENS, table.width).astype(np.float32))
        return tuple(arrays)

    def average_embeddings(self) -> tuple[NDArray[np.float32], ...]:
        """The token embeddings of the average celebrity, E arrays (2, D) float32.

        Raises IntegrityError when the bundle does not have them.
        """
        tables = self._manifest.token_tables
        if not self._manifest.average:
            raise IntegrityError(
                f"the bundle {self.path} lacks the average celebrity, which a likeness below 1 needs",
                "export the bundle again",
                reason="no_average_embeddings",
                path=self.path,
            )
        path = self.file(self._manifest.average)
        with open_regular(path) as file:
            raw = file.read()
        ends = np.cumsum([TOKENS * table.width for table in tables])
        if len(raw) != 4 * ends[-1]:
            raise _damaged(path, f"has {len(raw)} bytes instead of {4 * ends[-1]}")
        parts = np.split(np.frombuffer(raw, "<f4"), ends[:-1])
        return tuple(part.reshape(TOKENS, -1).astype(np.float32) for part in parts)

    def tokenizer(self) -> PromptTokenizer:
        """The bundle's tokenizer; it is read again only after the bundle was exported anew."""
        from celebctl_runtime.prompting.tokenizer import PromptTokenizer

        manifest = self._manifest
        info, fingerprint = manifest.tokenizer, manifest.fingerprint
        if self._tokenizer is None or self._tokenizer[0] != fingerprint:
            words = min(table.first_spare_row for table in manifest.token_tables)
            read = PromptTokenizer(
                self.file(info.file), info.max_length, bos=info.bos, eos=info.eos, pad=info.pad, vocabulary=words
            )
            self._tokenizer = fingerprint, read
        return self._tokenizer[1]

    def is_current(self) -> bool:
        """Whether the manifest on disk is still the one that was read; one stat call."""
        try:
            return _stamp(self.path) == self._stamp
        except FileNotFoundError:
            return False

    def refresh(self) -> bool:
        """Read the manifest again if another process published a new one; returns whether it did."""
        if self.is_current():
            return False
        self._manifest, self._stamp = _read(self.path)
        return True

    def verify(self, level: Verify = "full") -> None:
        """Check the files against the manifest.

        Args:
            level: "quick" checks presence, sizes and the rows of people, "full" every byte, "none" nothing.

        Raises:
            IntegrityError: Naming the first file that differs.
        """
        if level == "none":
            return
        try:
            self._verify_sizes()
            self._verify_people()
            if level == "full":
                self._verify_content()
        except IntegrityError:
            if not self.refresh():
                raise
            self.verify(level)  # another process changed the bundle meanwhile

    def verify_files(self, names: Iterable[str]) -> None:
        """Check every byte of some files. Raises IntegrityError naming the first that differs."""
        for name in names:
            entry, path = self._manifest.files[name], self.file(name)
            if not path.is_file() or sha256_file(path, entry.covers or None) != entry.sha256:
                raise _damaged(path, "does not have the content that was exported")

    def add(self, identity: Identity) -> None:
        """Add a person, without touching a network file; a no-op if the same identity is stored under this name.

        Raises:
            UsageError: When the name belongs to another identity.
            IntegrityError: When the identity was learned for another model.
            SetupError: When no spare rows are left or the bundle cannot be written.
            BusyError: When another process keeps changing the bundle.
        """
        self._put(identity, overwrite=False)

    def replace(self, identity: Identity) -> None:
        """Add a person, or replace the one with the same name. Raises as :meth:`add`, except for a known name."""
        self._put(identity, overwrite=True)

    def remove(self, name: str) -> None:
        """Remove a person and zero their rows. Raises NotFoundError for an unknown name, otherwise as :meth:`add`."""
        with self._change():
            identities = dict(self._manifest.identities)
            if name not in identities:
                raise self.unknown_person(name)
            slot = self._slot(identities.pop(name).rows)
            self._publish(identities=identities, pending_slots=(slot,))
            self._zero_pending()

    def zero_pending(self) -> None:
        """Zero the rows that a killed process left behind. Raises as :meth:`add`."""
        with self._change():
            pass

    def unknown_person(self, name: str) -> NotFoundError:
        """The error for a name that is not in the bundle."""
        known = f"the bundle has: {', '.join(self.names)}" if self.names else "the bundle has no people"
        problem = f"{name!r} is not in the bundle {self.path}"
        return NotFoundError(problem, known, reason="not_in_bundle", name=name, names=self.names)

    def _put(self, identity: Identity, *, overwrite: bool) -> None:
        self.check_fits(identity)
        with self._change():
            identities = dict(self._manifest.identities)
            old = identities.get(identity.name)
            if old is not None and old.digest == identity.digest:
                return
            if old is not None and not overwrite:
                raise UsageError(
                    f"the bundle {self.path} has another {identity.name!r}",
                    "choose another name, or use Bundle.replace",
                    reason="name_taken_in_bundle",
                    name=identity.name,
                )
            slot = self._free_slot()
            self._publish(pending_slots=(slot,), next_slot=slot + 1)
            identities[identity.name] = self._write_person(identity, slot)
            self._publish(identities=identities, pending_slots=() if old is None else (self._slot(old.rows),))
            self._zero_pending()

    @contextmanager
    def _change(self) -> Generator[None]:
        """Hold the bundle's lock, with the newest manifest read and the remains of killed processes zeroed."""
        from filelock import FileLock, Timeout

        lock = self.file(_LOCK_NAME)
        with translate_os_errors(self.path):
            try:
                with FileLock(lock, timeout=_LOCK_SECONDS):
                    if is_private(lock):
                        restrict(lock)
                    self.refresh()
                    self._check_writable()
                    self._zero_pending()
                    yield
            except Timeout as error:
                raise BusyError(
                    f"another process is changing the bundle {self.path}",
                    "try again",
                    reason="bundle_busy",
                    path=self.path,
                ) from error

    def _check_writable(self) -> None:
        """Raise before anything is published when a token table must not be written in place."""
        for table in self._manifest.token_tables:
            with open_regular(self.file(table.file), "rb+") as file:
                if file.seek(0, SEEK_END) != table.rows * table.row_bytes:
                    raise _damaged(self.file(table.file), f"does not hold {table.rows} rows")

    def _publish(self, **changes: object) -> None:
        manifest = replace(self._manifest, **changes)  # type: ignore[arg-type]
        atomic_write(self.path / FILE_NAME, manifest.to_bytes())
        self._manifest, self._stamp = manifest, _stamp(self.path)

    def vocabularies(self) -> list[NDArray[np.float32]]:
        """The token tables (V, D) of the model, without the spare rows."""
        tables: list[NDArray[np.float32]] = []
        for table in self._manifest.token_tables:
            rows = np.memmap(self.file(table.file), table.numpy_dtype, mode="r", shape=(table.rows, table.width))
            tables.append(rows[: table.first_spare_row].astype(np.float32))
        return tables

    def check_fits(self, identity: Identity) -> None:
        """Raise IntegrityError unless the identity was learned for the bundle's model; warn about other options."""
        model, tables = self._manifest.model, self._manifest.token_tables
        widths, needed = [array.shape[1] for array in identity.embeddings], [table.width for table in tables]
        if identity.family != model.family or identity.table_hash != model.table_hash:
            problem = (
                f"{identity.name!r} was learned for another model ({identity.family}, {identity.table_hash[:8]}) than"
                f" the bundle's ({model.family}, {model.table_hash[:8]})"
            )
        elif widths != needed:
            problem = f"{identity.name!r} has embeddings of width {widths}, the bundle needs {needed}"
        else:
            self._tell_differences(identity)
            return
        raise IntegrityError(
            problem,
            f"learn {identity.name} again for {model.name}, or use a bundle of the model it was learned for",
            reason="other_model",
            name=identity.name,
            model=model.name,
        )

    def _tell_differences(self, identity: Identity) -> None:
        """Warn when the identity was learned with another clip skip or prediction than the bundle draws with."""
        drawn = {
            "clip_skip": str(self._manifest.model.clip_skip or ""),
            "prediction": str(self._manifest.scheduler.get("prediction_type", "epsilon")),
        }
        for key, value in drawn.items():
            learned = identity.provenance.get(key, "")
            if learned and value and learned != value:
                what = key.replace("_", " ")
                _log.warning("%s was learned with %s %s, the bundle has %s", identity.name, what, learned, value)

    def _slot(self, rows: tuple[tuple[int, int], ...]) -> int:
        return (rows[0][0] - self._manifest.token_tables[0].first_spare_row) // TOKENS

    def _slot_rows(self, slot: int) -> tuple[tuple[int, int], ...]:
        firsts = [table.first_spare_row + TOKENS * slot for table in self._manifest.token_tables]
        return tuple((first, first + 1) for first in firsts)

    def _free_slot(self) -> int:
        free = self.free_rows()
        if free:
            return self._slot(free[0])
        count = self._manifest.slot_count
        spare_rows = 4 * TOKENS * max(count, 1)
        raise SetupError(
            f"the bundle {self.path} is full: it has room for {count} people",
            f"remove a person, or export the bundle with spare_rows={spare_rows}",
            reason="bundle_full",
            path=self.path,
            spare_rows=spare_rows,
        )

    def _write_person(self, identity: Identity, slot: int) -> IdentityEntry:
        rows = self._slot_rows(slot)
        content = [
            embeddings.astype(table.numpy_dtype).tobytes()
            for embeddings, table in zip(identity.embeddings, self._manifest.token_tables, strict=True)
        ]
        self._write_rows(rows, content)
        return IdentityEntry(rows, identity.digest, _sha256(content))

    def _zero_pending(self) -> None:
        """Zero the pending slots, and publish that there are none."""
        if not self._manifest.pending_slots:
            return
        zeros = [bytes(TOKENS * table.row_bytes) for table in self._manifest.token_tables]
        for slot in self._manifest.pending_slots:
            self._write_rows(self._slot_rows(slot), zeros)
        self._publish(pending_slots=())

    def _write_rows(self, rows: tuple[tuple[int, int], ...], content: Iterable[bytes]) -> None:
        for table, (first, _), data in zip(self._manifest.token_tables, rows, content, strict=True):
            with open_regular(self.file(table.file), "rb+") as file:
                file.seek(first * table.row_bytes)
                file.write(data)
                flush(file)

    def _verify_sizes(self) -> None:
        for name, entry in self._manifest.files.items():
            path = self.file(name)
            size = path.stat().st_size if path.is_file() else -1
            if size != entry.bytes:
                raise _damaged(path, "is missing" if size < 0 else f"has {size} bytes instead of {entry.bytes}")

    def _verify_people(self) -> None:
        """Check the token rows of every person: a few KiB each; damaged ones would show another person."""
        manifest = self._manifest
        for name, entry in manifest.identities.items():
            rows = _read_rows(self.path, manifest, entry.rows)
            if entry.rows_sha256 and _sha256(rows) != entry.rows_sha256:
                raise _damaged(self.file(manifest.token_tables[0].file), f"has damaged rows of {name!r}")

    def _verify_content(self) -> None:
        manifest = self._manifest
        self.verify_files(manifest.files)
        used = [*(e.rows for e in manifest.identities.values()), *map(self._slot_rows, manifest.pending_slots)]
        for number, table in enumerate(manifest.token_tables):
            if _has_stray_rows(self.file(table.file), table, {row for rows in used for row in rows[number]}):
                raise _damaged(self.file(table.file), "has content in free spare rows")


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever a manifest is published, because it is always a new file."""
    status = (path / FILE_NAME).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[Manifest, tuple[int, ...]]:
    try:
        stamp = _stamp(path)
        with open_regular(regular_path(path, FILE_NAME)) as file:
            return Manifest.from_bytes(file.read()), stamp
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"there is no bundle at {path}", "export one with export_bundle", reason="no_bundle", path=path
        ) from error
    except PermissionError as error:
        raise NotFoundError(f"cannot read the bundle at {path}: {error.strerror}", "check its permissions") from error


def _read_rows(path: Path, manifest: Manifest, rows: tuple[tuple[int, int], ...]) -> list[bytes]:
    content: list[bytes] = []
    for table, pair in zip(manifest.token_tables, rows, strict=True):
        with open_regular(regular_path(path, table.file)) as file:
            for row in pair:
                file.seek(row * table.row_bytes)
                content.append(file.read(table.row_bytes))
    return content


def _has_stray_rows(path: Path, table: TokenTable, used: set[int]) -> bool:
    """Whether a spare row outside ``used`` holds anything but zeros."""
    offset = table.first_spare_row * table.row_bytes
    content = np.fromfile(path, dtype=np.uint8, offset=offset).reshape(table.spare_rows, table.row_bytes)
    return any(row.any() and table.first_spare_row + i not in used for i, row in enumerate(content))


def _sha256(content: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(content)).hexdigest()


def _damaged(path: Path, problem: str) -> IntegrityError:
    return IntegrityError(f"{path} {problem}", "export the bundle again", reason="bundle_damaged", path=path)
