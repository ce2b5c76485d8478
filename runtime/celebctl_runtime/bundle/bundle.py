"""A bundle: a directory with everything that generating needs, and the people who live in it.

Adding and removing people touches no graph. Each person is a *slot*: two spare rows of every token table, which are raw
files that the text encoder's graph refers to. ONNX Runtime maps these files into memory, so a session that another
process opened long ago may see a row change under it. Hence the order of every change, all under one file lock:

1. Publish a manifest (atomic rename) that declares the slots about to be written as *pending*; nobody is named there.
2. Write only rows that no published name uses, and flush them to the disk.
3. Publish the manifest that names the new person, or no longer names the old one.
4. Zero the rows that became free, flush, and publish once more without pending slots.

What follows from the order: a reader of any manifest finds every row it names complete and unchanged for as long as
that manifest is the published one. So a reader that encodes a prompt and *then* finds the manifest unchanged has drawn
the people it meant (pipeline.py does this and starts again otherwise). A killed process leaves pending slots, which
full verification tolerates and the next change wipes. Free slots are handed out in a circle, so that the rows of a
person who was removed stay zero for as long as possible before another person moves in. Replacing a person writes a
new slot and never the old one.

Hashes: a token table's entry in ``files`` covers the vocabulary only and never changes; every person's rows have their
own SHA-256; spare rows of nobody must be zero. So every byte is accounted for, and adding a person hashes a few KiB.

A bundle may come from anywhere. Its files are regular files inside its folder: a symbolic link, device or pipe is
refused, and so is a write to a table that has a second name (hard link) or to rows past the end of its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
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
from celebctl_runtime.sampling.schedule import ScheduleConfig

from .manifest import FILE_NAME, FileEntry, IdentityEntry, Manifest, TokenTable

if TYPE_CHECKING:
    from celebctl_runtime.prompting.tokenizer import PromptTokenizer

__all__ = ["Bundle", "Manifest"]

Verify = Literal["quick", "full", "none"]

_LOCK_NAME = f"{FILE_NAME}.lock"
_LOCK_SECONDS = 10.0


class Bundle:
    """An opened bundle. The manifest is the one read last; :meth:`refresh` reads it again if it changed on disk."""

    def __init__(self, path: Path, manifest: Manifest, stamp: tuple[int, ...]) -> None:
        self.path = path
        self._manifest = manifest
        self._stamp = stamp

    @classmethod
    def open(cls, path: Path, verify: Verify = "quick") -> Bundle:
        """Open the bundle at ``path``; see :meth:`verify` for what is checked.

        Raises NotFoundError when there is no bundle, IntegrityError when it is damaged or of a newer format.
        """
        bundle = cls(path, *_read(path))
        bundle.verify(verify)
        return bundle

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Bundle:
        """Finish a freshly written bundle: hash every file of the directory ``path`` and write its manifest.

        ``manifest`` needs no ``files``. People already in the token tables (rows from ``first_spare_row`` on) must be
        listed in ``identities``; the SHA-256 of their rows is filled in. Raises IntegrityError when tables and
        manifest disagree.
        """
        covers = {table.file: table.first_spare_row * table.row_bytes for table in manifest.token_tables}
        files: dict[str, FileEntry] = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in (FILE_NAME, _LOCK_NAME):
                count = covers.get(name, 0)
                files[name] = FileEntry(sha256_file(file, count or None), file.stat().st_size, count)
        people = {
            name: replace(resident, rows_sha256=_hash(_read_rows(path, manifest, resident.rows)))
            for name, resident in manifest.identities.items()
        }
        sealed = Manifest.from_bytes(replace(manifest, files=files, identities=people).to_bytes())
        atomic_write(path / FILE_NAME, sealed.to_bytes())
        return cls.open(path, verify="quick")

    @property
    def manifest(self) -> Manifest:
        """The manifest as read last."""
        return self._manifest

    @property
    def schedule(self) -> ScheduleConfig:
        """The noise schedule of the model."""
        return ScheduleConfig.from_dict(self._manifest.scheduler)

    @property
    def names(self) -> tuple[str, ...]:
        """The people who live here, sorted."""
        return tuple(sorted(self._manifest.identities))

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Name -> the token ids that stand for the person (row numbers of the first text encoder's table)."""
        return {name: resident.rows[0] for name, resident in self._manifest.identities.items()}

    def file(self, name: str) -> Path:
        """Where a file of the bundle lies, or would. Raises IntegrityError for a link or any other special file."""
        return regular_path(self.path, name)

    def free_rows(self) -> list[tuple[tuple[int, int], ...]]:
        """The places that nobody lives in, as :class:`IdentityEntry` has them; the one that is taken next comes first."""
        count = min(table.spare_rows for table in self._manifest.token_tables) // TOKENS
        taken = {pair for resident in self._manifest.identities.values() for pair in enumerate(resident.rows)}
        start = self._manifest.next_slot
        places = (self._slot_rows((start + i) % count) for i in range(count))
        return [rows for rows in places if taken.isdisjoint(enumerate(rows))]

    def embeddings(self, name: str) -> tuple[NDArray[np.float32], ...]:
        """The token rows of somebody who lives here, E arrays (2, D)."""
        rows = _read_rows(self.path, self._manifest, self._manifest.identities[name].rows)
        return _arrays(rows, self._manifest.token_tables)

    def average(self) -> tuple[NDArray[np.float32], ...]:
        """The token rows of the average celebrity, E arrays (2, D). Raises IntegrityError when they are not here."""
        tables = self._manifest.token_tables
        if not self._manifest.average:
            raise IntegrityError(
                f"the bundle {self.path} does not know the average celebrity, whom --likeness goes towards",
                "celebctl export makes a fresh bundle that does",
            )
        path = self.file(self._manifest.average)
        with open_regular(path) as file:
            raw = file.read()
        if len(raw) != sum(TOKENS * 4 * table.width for table in tables):
            raise _damaged(path, f"has {len(raw)} bytes, which are not the average celebrity's")
        ends = np.cumsum([TOKENS * table.width for table in tables])
        parts = np.split(np.frombuffer(raw, "<f4"), ends[:-1])
        return tuple(part.reshape(TOKENS, -1).astype(np.float32) for part in parts)

    def tokenizer(self) -> PromptTokenizer:
        """The bundle's tokenizer."""
        from celebctl_runtime.prompting.tokenizer import PromptTokenizer

        facts = self._manifest.tokenizer
        return PromptTokenizer(self.file(facts.file), facts.max_length, bos=facts.bos, eos=facts.eos, pad=facts.pad)

    def is_current(self) -> bool:
        """Whether the manifest on disk is still the one that was read. Costs one stat call."""
        try:
            return _stamp(self.path) == self._stamp
        except FileNotFoundError:
            return False

    def refresh(self) -> bool:
        """Read the manifest again if another process published a new one; True when it did."""
        if self.is_current():
            return False
        self._manifest, self._stamp = _read(self.path)
        return True

    def verify(self, level: Verify = "full") -> None:
        """Check the files: ``quick`` their presence and sizes, ``full`` every byte, ``none`` nothing.

        Raises IntegrityError naming the first file that differs from what the manifest says.
        """
        if level == "none":
            return
        try:
            self._verify_sizes()
            if level == "full":
                self._verify_content()
        except IntegrityError:
            if not self.refresh():
                raise
            self.verify(level)  # another process changed the bundle meanwhile: look at it once more

    def verify_files(self, names: Iterable[str]) -> None:
        """Check every byte of some of the files. Raises IntegrityError naming the first that differs."""
        for name in names:
            facts, path = self._manifest.files[name], self.file(name)
            if not path.is_file() or sha256_file(path, facts.covers or None) != facts.sha256:
                raise _damaged(path, "has other content than was exported")

    def add(self, identity: Identity) -> None:
        """Let a person move in, in milliseconds; nothing happens if exactly this person lives here under this name.

        Raises UsageError when the name belongs to somebody else, IntegrityError when the identity was learned for
        another model, SetupError when no spare rows are left or the place cannot be written, Busy when another
        process keeps changing the bundle.
        """
        self._put(identity, replacing=False)

    def replace(self, identity: Identity) -> None:
        """Like :meth:`add`, but a person of the same name is exchanged for this one."""
        self._put(identity, replacing=True)

    def remove(self, name: str) -> None:
        """Let a person move out; the rows are zeroed. Raises NotFoundError for an unknown name, otherwise as :meth:`add`."""
        with self._change():
            people = dict(self._manifest.identities)
            if name not in people:
                raise NotFoundError(
                    f"{name!r} is not in the bundle {self.path}", f"known: {', '.join(self.names) or 'nobody'}"
                )
            slot = self._slot(people.pop(name).rows)
            self._publish(identities=people, pending_slots=(slot,))
            self._wipe_pending()

    def _put(self, identity: Identity, *, replacing: bool) -> None:
        self.check_fits(identity)
        with self._change():
            people = dict(self._manifest.identities)
            old = people.get(identity.name)
            if old is not None and old.digest == identity.digest:
                return
            if old is not None and not replacing:
                raise UsageError(
                    f"another {identity.name!r} already lives in the bundle {self.path}",
                    f"use another name, or celebctl forget {identity.name} first",
                )
            slot = self._free_slot()
            self._publish(pending_slots=(slot,), next_slot=slot + 1)
            people[identity.name] = self._write_person(identity, slot)
            self._publish(identities=people, pending_slots=() if old is None else (self._slot(old.rows),))
            self._wipe_pending()

    @contextmanager
    def _change(self) -> Generator[None]:
        """Hold the bundle's lock, with the newest manifest read and the traces of killed processes wiped."""
        from filelock import FileLock, Timeout

        with translate_os_errors(self.path):
            try:
                with FileLock(self.file(_LOCK_NAME), timeout=_LOCK_SECONDS):
                    self.refresh()
                    self._check_writable()
                    self._wipe_pending()
                    yield
            except Timeout as error:
                raise BusyError(
                    f"another process is changing the bundle {self.path}", "run the same command again"
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

    def check_fits(self, identity: Identity) -> None:
        """Raise IntegrityError for somebody who was learned for another model."""
        model, tables = self._manifest.model, self._manifest.token_tables
        hint = f"learn {identity.name} again for {model.name}, or name a bundle of the model it was learned for"
        if identity.family != model.family or identity.table_hash != model.table_hash:
            raise IntegrityError(
                f"{identity.name!r} was learned for another model ({identity.family}, {identity.table_hash[:8]}) than"
                f" the bundle's ({model.family}, {model.table_hash[:8]})",
                hint,
            )
        widths = [array.shape[1] for array in identity.embeddings]
        if widths != [table.width for table in tables]:
            raise IntegrityError(
                f"{identity.name!r} has embeddings of width {widths}, the bundle needs {[t.width for t in tables]}",
                hint,
            )

    def _slot(self, rows: tuple[tuple[int, int], ...]) -> int:
        return (rows[0][0] - self._manifest.token_tables[0].first_spare_row) // TOKENS

    def _slot_rows(self, slot: int) -> tuple[tuple[int, int], ...]:
        firsts = [table.first_spare_row + TOKENS * slot for table in self._manifest.token_tables]
        return tuple((first, first + 1) for first in firsts)

    def _free_slot(self) -> int:
        free = self.free_rows()
        if free:
            return self._slot(free[0])
        count = min(table.spare_rows for table in self._manifest.token_tables) // TOKENS
        raise SetupError(
            f"the bundle {self.path} is full: all {count} places are taken",
            f"celebctl export --spare-rows {4 * TOKENS * max(count, 1)}, or celebctl forget somebody",
        )

    def _write_person(self, identity: Identity, slot: int) -> IdentityEntry:
        rows = self._slot_rows(slot)
        content = [
            embeddings.astype(np.dtype(table.dtype).newbyteorder("<")).tobytes()
            for embeddings, table in zip(identity.embeddings, self._manifest.token_tables, strict=True)
        ]
        self._write_rows(rows, content)
        return IdentityEntry(rows, identity.digest, _hash(content))

    def _wipe_pending(self) -> None:
        """Zero the pending slots that nobody lives in, and declare the bundle clean."""
        pending = self._manifest.pending_slots
        if not pending:
            return
        for slot in pending:
            self._write_rows(self._slot_rows(slot), [bytes(TOKENS * t.row_bytes) for t in self._manifest.token_tables])
        self._publish(pending_slots=())

    def _write_rows(self, rows: tuple[tuple[int, int], ...], content: Iterable[bytes]) -> None:
        for table, (first, _), data in zip(self._manifest.token_tables, rows, content, strict=True):
            with open_regular(self.file(table.file), "rb+") as file:
                file.seek(first * table.row_bytes)
                file.write(data)
                flush(file)

    def _verify_sizes(self) -> None:
        for name, facts in self._manifest.files.items():
            path = self.file(name)
            size = path.stat().st_size if path.is_file() else -1
            if size != facts.bytes:
                raise _damaged(path, "is missing" if size < 0 else f"has {size} bytes instead of {facts.bytes}")

    def _verify_content(self) -> None:
        manifest = self._manifest
        self.verify_files(manifest.files)
        for name, resident in manifest.identities.items():
            content = _read_rows(self.path, manifest, resident.rows)
            if resident.rows_sha256 and _hash(content) != resident.rows_sha256:
                raise _damaged(self.file(manifest.token_tables[0].file), f"has damaged rows of {name!r}")
        owned = [*(r.rows for r in manifest.identities.values()), *map(self._slot_rows, manifest.pending_slots)]
        for number, table in enumerate(manifest.token_tables):
            if _strays(self.file(table.file), table, {row for rows in owned for row in rows[number]}):
                raise _damaged(self.file(table.file), "has content in spare rows that belong to nobody")


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a manifest is published: it is always a new file."""
    status = (path / FILE_NAME).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[Manifest, tuple[int, ...]]:
    try:
        stamp = _stamp(path)
        with open_regular(regular_path(path, FILE_NAME)) as file:
            return Manifest.from_bytes(file.read()), stamp
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no bundle at {path}", "celebctl export makes one") from error
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


def _arrays(content: Sequence[bytes], tables: Sequence[TokenTable]) -> tuple[NDArray[np.float32], ...]:
    """Raw rows, two per table, as E arrays (2, D) float32."""
    arrays: list[NDArray[np.float32]] = []
    for number, table in enumerate(tables):
        pair = b"".join(content[TOKENS * number : TOKENS * (number + 1)])
        stored = np.frombuffer(pair, np.dtype(table.dtype).newbyteorder("<"))
        arrays.append(stored.reshape(TOKENS, table.width).astype(np.float32))
    return tuple(arrays)


def _strays(path: Path, table: TokenTable, owned: set[int]) -> bool:
    """Whether a spare row that nobody owns holds anything but zeros."""
    offset = table.first_spare_row * table.row_bytes
    content = np.fromfile(path, dtype=np.uint8, offset=offset).reshape(table.spare_rows, table.row_bytes)
    return any(bytes(row).strip(b"\0") and table.first_spare_row + i not in owned for i, row in enumerate(content))


def _hash(content: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(content)).hexdigest()


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path} {what}", "celebctl export makes a fresh bundle")
