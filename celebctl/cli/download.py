"""setup: put a model, or a pack of face models, onto this machine, once its licence is accepted."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl_models.checkpoints.known_models import KnownModel, Licence
    from celebctl_models.faces.packs import Pack

MB = 1_000_000
Report = Callable[[int, int, str], object]  # bytes done, bytes in all, file


@dataclass(frozen=True)
class DownloadPlan:
    """What a setup comes to, before anything is done. `files`: path, bytes, SHA-256 or "", whether it is here."""

    target: str
    title: str
    source: str
    licence: "Licence"
    files: list[tuple[str, int, str, bool]]
    fetch: Callable[[Report], Path]
    accept: Callable[[], object] = lambda: None
    accepted: bool = False
    note: str = ""

    @property
    def left(self) -> int:
        """Bytes to fetch or copy."""
        return sum(size for _, size, _, here in self.files if not here)

    @property
    def document(self) -> dict[str, object]:
        """For --json."""
        names = ("path", "bytes", "sha256", "here")
        return {
            "target": self.target,
            "source": self.source,
            "licence": {"name": self.licence.name, "means": self.licence.means, "url": self.licence.url},
            "files": [dict(zip(names, file, strict=True)) for file in self.files],
            "bytes": sum(size for _, size, _, _ in self.files),
            "bytes_left": self.left,
        }


def download(
    ctx: typer.Context,
    target: Annotated[
        str, typer.Argument(help="Known model, hub id, or face models: buffalo_l, antelopev2.", metavar="MODEL")
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take it from this folder (diffusers, hub cache, archive).", metavar="DIR"),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="You accept its licence; nothing is asked.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the size.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
) -> None:
    """Fetch a model or face models: sizes and licence first, then a download that goes on where it was cut off."""
    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    with requires_extra("learn", "fetching models"):
        offer = plan_download(console, target, source)
        if isinstance(offer, Path):
            console.info(f"{target} is on this machine already")
            console.output([str(offer)], {"target": target, "path": str(offer), "bytes_left": 0})
        elif dry_run:
            present(console, offer)
            console.output([f"{path}\t{size}" for path, size, _, _ in offer.files], {**offer.document, "path": None})
        else:
            present(console, offer)
            confirm(console, offer, accept, yes)
            offer.accept()
            with console.progress(f"setting up {target}") as report:
                path = offer.fetch(lambda done, total, name: report(done // MB, max(total // MB, 1), f"MB  {name}"))
            console.info(f"{target} is set up")
            console.output([str(path)], {**offer.document, "bytes_left": 0, "path": str(path)})
            console.suggest(_next_step(target))


def plan_download(console: CliConsole, target: str, source: Path | None) -> DownloadPlan | Path:
    """What there is to do for `target`, or where it already is. Raises NotFoundError, InvalidInputError, SetupError."""
    from celebctl_models.checkpoints.known_models import KNOWN, known_by_source
    from celebctl_models.checkpoints.registry import locate
    from celebctl_models.faces.packs import PACKS
    from celebctl_runtime.errors import NotFoundError, UsageError

    if source is not None and not source.expanduser().exists():
        raise NotFoundError(f"there is no folder {source}", "check the path after --from")
    if target in PACKS:
        return _offer_pack(PACKS[target], source)
    known = KNOWN.get(target) or known_by_source(target)
    place = locate(target)
    if place.kind == "file" or (place.kind == "folder" and known is None and Path(target).expanduser().exists()):
        raise UsageError(f"{target} is on this machine already", f"take it as it is: celebctl use {target}")
    if source is not None and not (known and known.bundled):
        return _offer_folder(target, place.source, place.revision, known, source.expanduser())
    if place.kind == "folder" and known is not None:
        return place.path
    return _offer_hub(target, place.source, place.revision, known)


def _offer_hub(target: str, source: str, revision: str, known: "KnownModel | None") -> DownloadPlan:
    from celebctl_models.checkpoints.hub_download import fetch_model, plan_model

    plan = plan_model(source, revision, known, target)
    return DownloadPlan(
        target,
        known.title if known else source,
        f"{source}@{plan.commit[:8]}",
        known.licence if known else _stated_licence(source, plan.licence),
        [(file.path, file.size, file.sha256 or "", file.here) for file in plan.files],
        lambda report: fetch_model(plan, report, target),
        note=known.note if known else "",
    )


def _offer_folder(target: str, source: str, revision: str, known: "KnownModel | None", folder: Path) -> DownloadPlan:
    from celebctl_models.checkpoints.hub_download import find_source, install_model, refuse_folder
    from celebctl_models.checkpoints.registry import files_in

    place = find_source(folder, source, revision)
    refuse_folder(str(place), place)
    return DownloadPlan(
        target,
        known.title if known else source,
        str(place),
        known.licence if known else _stated_licence(source, None),
        [(name, (place / name).stat().st_size, "", False) for name in files_in(place)],
        lambda report: install_model(place, target, known, report),
        note=known.note if known else "",
    )


def _offer_pack(pack: "Pack", source: Path | None) -> DownloadPlan | Path:
    from celebctl_models.checkpoints.hub_download import fetch_pack
    from celebctl_models.checkpoints.known_models import Licence
    from celebctl_models.faces.packs import accept, accepted_at, find_pack, install_pack
    from celebctl_runtime.errors import NotFoundError
    from celebctl_runtime.paths import data_root

    root = data_root()
    accepted = accepted_at(pack.name, root) is not None
    here: Path | None = None
    with contextlib.suppress(NotFoundError):
        here = find_pack(pack.name, root) if source is None else None
    if here is not None and accepted:
        return here

    def bring(report: Report) -> Path:
        if here is not None:
            return here
        if source is None:
            return fetch_pack(pack, root, report)
        archive = source.expanduser() / f"{pack.name}.zip"
        given = archive if archive.is_file() else source.expanduser()
        return install_pack(pack.name, given, root)

    return DownloadPlan(
        pack.name,
        pack.about,
        pack.urls[0] if source is None else str(source),
        Licence("non-commercial research only", pack.licence, pack.licence_source),
        [(f"{pack.name}.zip", pack.size, pack.sha256, here is not None)],
        bring,
        lambda: accept(pack.name, root),
        accepted,
    )


def _stated_licence(source: str, name: str | None) -> "Licence":
    """The licence of a model the table does not know, as its card on the hub says."""
    from celebctl_models.checkpoints.known_models import Licence

    means = "celebctl does not know these terms: read them where the model comes from."
    free = (name or "").casefold() in ("apache-2.0", "mit", "cc0-1.0", "unlicense")
    return Licence(name or "not stated", means, f"https://huggingface.co/{source}", restricts=not free)


def present(console: CliConsole, offer: DownloadPlan) -> None:
    """Say what it is, under which licence, and how much of it is still to come."""
    from rich.filesize import decimal

    rows = [(path, decimal(size), "here" if here else "", sha256[:12]) for path, size, sha256, here in offer.files]
    console.table("", ("file", "size", "", "sha-256"), rows)
    count = sum(not here for _, _, _, here in offer.files)
    amount = f"{decimal(offer.left)} in {count} file{'' if count == 1 else 's'} to bring"
    console.info(f"{offer.target}: {offer.title}; {amount if offer.left else 'nothing to fetch'}")
    console.info(f"from {offer.source}")
    console.info(f"licence: {offer.licence.name}. {offer.licence.means} {offer.licence.url}")
    if offer.note:
        console.warn(offer.note)


def confirm(console: CliConsole, offer: DownloadPlan, accept: bool, yes: bool) -> None:
    """Ask once, where there is somebody to ask. Raises PolicyError when the licence is not accepted."""
    from rich.filesize import decimal

    from celebctl_runtime.errors import PolicyError

    asked = offer.licence.restricts and not offer.accepted
    if accept or not (asked or (offer.left and not yes)):
        return
    amount = f"fetch {decimal(offer.left)}" if offer.left and not yes else ""
    question = " and ".join(part for part in ("accept this licence" if asked else "", amount) if part)
    command = f"celebctl setup {offer.target} --accept-licence"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if not asked:
            return
        raise PolicyError(
            f"{offer.target} comes under a licence that nobody has accepted: {offer.licence.name}",
            f"read {offer.licence.url}, then: {command}",
        )
    if not typer.confirm(f"{question[:1].upper()}{question[1:]}?", err=True):
        raise PolicyError(f"{offer.target} was not set up: you said no", f"when you want it: {command}")


def _next_step(target: str) -> str:
    from celebctl.settings import Settings
    from celebctl_models.faces.packs import PACKS

    if target in PACKS or Settings.read().text("model") == target:
        return "celebctl learn face.jpg --name alice"
    return f"celebctl use {target}"
