"""download: install a model or face models on this machine, once the licence is accepted."""

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
    from celebctl_runtime.progress import Progress, ProgressCallback

MB = 1_000_000


@dataclass(frozen=True)
class DownloadPlan:
    """What a download will do. `files`: path, bytes, SHA-256 or "", whether it is here; `install` returns a folder."""

    target: str
    title: str
    source: str
    licence: "Licence"
    files: list[tuple[str, int, str, bool]]
    install: Callable[["ProgressCallback"], Path]
    accept: Callable[[], object] = lambda: None
    accepted: bool = False
    note: str = ""

    @property
    def left(self) -> int:
        """Bytes to download or copy."""
        return sum(size for _, size, _, here in self.files if not here)

    @property
    def document(self) -> dict[str, object]:
        """The result for --json."""
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
        str,
        typer.Argument(
            help="Known model, Hub id, or face models: buffalo_l, antelopev2, yunet_sface.", metavar="MODEL"
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Copy it from this folder (diffusers, hub cache, archive).", metavar="DIR"),
    ] = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="Accept its licence without a question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about the size.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be downloaded.")] = False,
) -> None:
    """Download a model or face models, after showing size and licence. An interrupted download keeps complete files."""
    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    with requires_extra("learn", "downloading models"):
        plan = plan_download(target, source)
        if isinstance(plan, Path):
            console.info(f"{target} is already on this machine")
            console.output([str(plan)], {"target": target, "path": str(plan), "bytes_left": 0})
        elif dry_run:
            show_plan(console, plan)
            console.output([f"{path}\t{size}" for path, size, _, _ in plan.files], {**plan.document, "path": None})
        else:
            show_plan(console, plan)
            confirm(plan, accept, yes)
            plan.accept()
            path = _install(console, plan)
            console.info(f"{target} is installed")
            console.output([str(path)], {**plan.document, "bytes_left": 0, "path": str(path)})
            console.suggest(_next_step(target))


def _install(console: CliConsole, plan: DownloadPlan) -> Path:
    """Install with a progress bar in megabytes."""
    with console.progress(f"downloading {plan.target}") as report:

        def show(event: "Progress") -> None:
            report(event.step // MB, max(event.total // MB, 1), f"MB  {event.stage}")

        return plan.install(show)


def plan_download(target: str, source: Path | None) -> DownloadPlan | Path:
    """The plan for `target`, or the folder where it already is. Raises NotFoundError, InvalidInputError, SetupError."""
    from celebctl_models.checkpoints.known_models import KNOWN, known_by_source
    from celebctl_models.checkpoints.registry import locate
    from celebctl_models.faces.packs import PACKS
    from celebctl_runtime.errors import NotFoundError, UsageError
    from celebctl_runtime.paths import expanded

    if source is not None and not expanded(source).exists():
        raise NotFoundError(f"there is no folder {source}", "check the path after --from")
    if target in PACKS:
        return _plan_pack(PACKS[target], source)
    known = KNOWN.get(target) or known_by_source(target)
    location = locate(target)
    if location.kind == "file" or (location.kind == "folder" and known is None and expanded(target).exists()):
        raise UsageError(f"{target} is already on this machine", f"use it: celebctl use {target}")
    if source is not None and not (known and known.bundled):
        return _plan_folder(target, location.source, location.revision, known, expanded(source))
    if location.kind == "folder" and known is not None:
        return location.path
    return _plan_hub(target, location.source, location.revision, known)


def _plan_hub(target: str, source: str, revision: str, known: "KnownModel | None") -> DownloadPlan:
    """The plan for a model on the hub."""
    from celebctl_models.checkpoints.hub_download import fetch_model, plan_model

    plan = plan_model(source, revision, known, target)
    return DownloadPlan(
        target,
        known.title if known else source,
        f"{source}@{plan.commit[:8]}",
        known.licence if known else _stated_licence(source, plan.licence),
        [(file.path, file.size, file.sha256 or "", file.here) for file in plan.files],
        lambda progress: fetch_model(plan, progress),
        note=known.note if known else "",
    )


def _plan_folder(target: str, source: str, revision: str, known: "KnownModel | None", folder: Path) -> DownloadPlan:
    """The plan for a model in a folder."""
    from celebctl_models.checkpoints.hub_download import find_source, install_model, refuse_folder
    from celebctl_models.checkpoints.registry import files_in

    model = find_source(folder, source, revision)
    refuse_folder(str(model), model)
    return DownloadPlan(
        target,
        known.title if known else source,
        str(model),
        known.licence if known else _stated_licence(source, None),
        [(name, (model / name).stat().st_size, "", False) for name in files_in(model)],
        lambda progress: install_model(model, target, known, progress),
        note=known.note if known else "",
    )


def _plan_pack(pack: "Pack", source: Path | None) -> DownloadPlan | Path:
    """The plan for face models, or the folder where they are, with their licence accepted."""
    from celebctl_models.checkpoints.hub_download import fetch_pack
    from celebctl_models.checkpoints.known_models import Licence
    from celebctl_models.faces.packs import accept, accepted_at, find_pack, install_pack
    from celebctl_runtime.errors import NotFoundError
    from celebctl_runtime.paths import data_root, expanded

    root = data_root()
    accepted = not pack.restricts or accepted_at(pack.name, root) is not None
    here: Path | None = None
    with contextlib.suppress(NotFoundError):
        here = find_pack(pack.name, root) if source is None else None
    if here is not None and accepted:
        return here

    def install(progress: "ProgressCallback") -> Path:
        if here is not None:
            return here
        if source is None:
            return fetch_pack(pack, root, progress)
        archive = expanded(source) / f"{pack.name}.zip"
        return install_pack(pack.name, archive if archive.is_file() else expanded(source), root)

    return DownloadPlan(
        pack.name,
        pack.about,
        pack.downloads[0].urls[0] if source is None else str(source),
        Licence(pack.terms, pack.licence, pack.licence_source, pack.restricts),
        [(file.name, file.size, file.sha256, here is not None) for file in pack.downloads],
        install,
        (lambda: accept(pack.name, root)) if pack.restricts else (lambda: None),
        accepted,
    )


def _stated_licence(source: str, name: str | None) -> "Licence":
    """The licence of a model that is not in the table, as its card on the hub states it."""
    from celebctl_models.checkpoints.known_models import Licence

    means = "celebctl does not know these terms: read them on the model's page."
    free = (name or "").casefold() in ("apache-2.0", "mit", "cc0-1.0", "unlicense")
    return Licence(name or "not stated", means, f"https://huggingface.co/{source}", restricts=not free)


def show_plan(console: CliConsole, plan: DownloadPlan) -> None:
    """Print the files, the licence, and the size of the download."""
    from rich.filesize import decimal

    rows = [(path, decimal(size), "here" if here else "", sha256[:12]) for path, size, sha256, here in plan.files]
    console.table("", ("file", "size", "", "sha-256"), rows)
    count = sum(not here for _, _, _, here in plan.files)
    amount = f"{decimal(plan.left)} in {count} file{'' if count == 1 else 's'}"
    console.info(f"{plan.target}: {plan.title}; {amount if plan.left else 'nothing to download'}")
    console.info(f"from {plan.source}")
    console.info(f"licence: {plan.licence.name}. {plan.licence.means} {plan.licence.url}")
    if plan.note:
        console.warn(plan.note)


def confirm(plan: DownloadPlan, accept: bool, yes: bool) -> None:
    """Ask one question about licence and size, on a terminal. Raises PolicyError when the licence is not accepted."""
    from rich.filesize import decimal

    from celebctl_runtime.errors import PolicyError

    needs_licence = plan.licence.restricts and not plan.accepted
    needs_size = bool(plan.left) and not yes
    if accept or not (needs_licence or needs_size):
        return
    command = f"celebctl download {plan.target} --accept-licence"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if not needs_licence:
            return
        raise PolicyError(
            f"the licence of {plan.target} has not been accepted: {plan.licence.name}",
            f"read {plan.licence.url}, then: {command}",
        )
    licence = "accept this licence" if needs_licence else ""
    question = " and ".join(filter(None, (licence, f"download {decimal(plan.left)}" if needs_size else "")))
    if not typer.confirm(f"{question[:1].upper()}{question[1:]}?", err=True):
        raise PolicyError(f"{plan.target} was not downloaded", f"to download it later: {command}")


def _next_step(target: str) -> str:
    """The command to suggest after a download."""
    from celebctl.settings import Settings
    from celebctl_models.faces.packs import PACKS

    if target in PACKS or Settings.read().text("model") == target:
        return "celebctl learn face.jpg --name alice"
    return f"celebctl use {target}"
