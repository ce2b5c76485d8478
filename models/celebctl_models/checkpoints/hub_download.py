"""Downloads: models from the Hugging Face hub, face models from where they are published, either from a local folder.

huggingface_hub downloads models into its own cache and reads HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and
HF_ENDPOINT. After an interruption the same command keeps every complete file; the file that was cut starts over
(huggingface_hub 2.4). Weights are checked against the SHA-256 that the hub, or the table of known models, states.
"""

import contextlib
import errno
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl_models.faces.download import BLOCK, download, refuse_offline
from celebctl_models.faces.packs import Pack, install_pack
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, SetupError
from celebctl_runtime.files import atomic_directory, sha256_file

from .known_models import KnownModel, refuse_index
from .registry import (
    INDEX_FILE,
    MODEL_FILES,
    Location,
    cached_folder,
    files_in,
    installed_folder,
    missing_parts,
    parts_of,
    read_json,
    wanted_files,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

Report = Callable[[int, int, str], object]  # bytes done, bytes in all, file
_SHA256 = re.compile(r"[0-9a-f]{64}")


def ignore(done: int, total: int, name: str) -> None:
    """Nobody watches."""


# A model from the hub.


@dataclass(frozen=True)
class WantedFile:
    """One file of a hub repository: path in it, bytes, and SHA-256 where the hub states one (large files)."""

    path: str
    size: int
    sha256: str | None
    here: bool


@dataclass(frozen=True)
class Plan:
    """What fetching a model comes to. `revision` as asked for, `commit` what it is now."""

    source: str
    revision: str
    commit: str
    licence: str | None  # as the hub's card says it
    files: tuple[WantedFile, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    @property
    def left(self) -> int:
        """Bytes still to fetch."""
        return sum(file.size for file in self.files if not file.here)


def plan_model(source: str, revision: str, known: KnownModel | None = None, target: str = "") -> Plan:
    """List what a hub repository holds of a model, after a look at its index. Fetches that index and nothing else.

    Raises NotFoundError, InvalidInputError (another family; no safetensors), IntegrityError (other weights than the table
    states) or SetupError (offline, no network, no permission).
    """
    target = target or source
    refuse_offline(source, target)
    with _hub_problems(source, target), _no_bars():
        from huggingface_hub import HfApi, hf_hub_download  # pyright: ignore[reportUnknownVariableType]

        info = HfApi().model_info(source, revision=revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        if INDEX_FILE not in siblings:
            raise InvalidInputError(f"{source} holds no diffusers model: {INDEX_FILE} is missing", "name another one")
        folder = Path(hf_hub_download(source, INDEX_FILE, revision=revision)).parent
    refuse_folder(source, folder, list(siblings))
    files = tuple(_wanted(siblings[name], folder, known) for name in wanted_files(siblings))
    licence = info.card_data.to_dict().get("license") if info.card_data else None
    return Plan(source, revision, folder.name, licence, files)


def refuse_folder(source: str, folder: Path, names: list[str] | None = None) -> None:
    """Raise InvalidInputError when a model is of a family that cannot be used, or has no safetensors.

    `names`: the files it has; default what is in `folder`.
    """
    refuse_index(source, read_json(folder / INDEX_FILE))
    missing = missing_parts(folder, names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidInputError(
            f"{source} holds no {missing[0]}{more}",
            "celebctl reads diffusers folders with full safetensors (no .bin, no fp16 variants alone)",
        )


def _wanted(sibling: "RepoSibling", folder: Path, known: KnownModel | None) -> WantedFile:
    path = sibling.rfilename
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    stated = known.sha256.get(path) if known else None
    if stated and sha256 and stated != sha256:
        raise IntegrityError(
            f"the hub offers another {path} than the one celebctl knows", "look for a newer celebctl, or use --from DIR"
        )
    return WantedFile(path, sibling.size or 0, sha256 or stated, (folder / path).exists())


def fetch_model(plan: Plan, report: Report = ignore, target: str = "") -> Path:
    """Download the files of a planned model that are missing into the hub client's cache; returns the folder.

    Raises IntegrityError when a file has another SHA-256 than stated (it is removed), else as `plan_model`.
    """
    from huggingface_hub import constants, snapshot_download  # pyright: ignore[reportUnknownVariableType]

    require_space(Path(constants.HF_HUB_CACHE), plan.left)
    with _hub_problems(plan.source, target or plan.source):
        bar = _reporting_bar(plan, report)
        patterns = list(MODEL_FILES)
        fetched = snapshot_download(plan.source, revision=plan.revision, allow_patterns=patterns, tqdm_class=bar)
    folder = Path(fetched)
    for file in plan.files:
        if file.sha256 and not file.here and sha256_file(folder / file.path) != file.sha256:
            (folder / file.path).resolve().unlink()
            hint = "run the same command again; the damaged file is removed"
            raise IntegrityError(f"{file.path} of {plan.source} has not the SHA-256 {file.sha256}", hint)
    report(plan.size, plan.size, plan.source)
    refuse_folder(plan.source, folder)
    check_folder(folder)
    return folder


def fetch_folder(location: Location, files: Sequence[str] = MODEL_FILES) -> Path:
    """Download a model's `files` (glob patterns) from the hub, or find them in its cache; returns the folder."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    with _hub_problems(location.source, location.source):
        return Path(snapshot_download(location.source, revision=location.revision, allow_patterns=list(files)))


def _reporting_bar(plan: Plan, report: Report) -> Any:
    """A progress bar class for the hub client that prints nothing and reports the bytes written."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    here = plan.size - plan.left

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts = kwargs.get("name") == "huggingface_hub.snapshot_download"  # not files, not network bytes
            self.written = 0.0
            super().__init__(*args, **{**kwargs, "disable": True})  # pyright: ignore[reportUnknownMemberType]

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                self.written += n or 0
                if self.counts:
                    report(min(here + int(self.written), plan.size), plan.size, plan.source)
            return None

    return Bar


def require_space(place: Path, size: int) -> None:
    """Raise SetupError when the disk of `place`, which need not exist yet, has fewer than `size` bytes left."""
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise SetupError(
            f"{place} has {free / 1e9:.1f} GB free, and this takes {size / 1e9:.1f} GB",
            "free some space, or set HF_HOME (models) or CELEBCTL_HOME (face models) to a larger disk",
        )


@contextlib.contextmanager
def _no_bars() -> Generator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextlib.contextmanager
def _hub_problems(source: str, target: str) -> Generator[None]:
    """What the hub's client raises, as our errors. Without the client: ModuleNotFoundError."""
    from huggingface_hub import constants, errors

    try:
        yield
    except (CelebctlError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError as error:
        hint = f"agree to its terms at https://huggingface.co/{source}, then set HF_TOKEN"
        raise SetupError(f"the model {source} is gated", hint) from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError(f"{source} has no such revision any more", "look for a newer celebctl, or --from DIR") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        hint = "check the spelling; for a private model set HF_TOKEN"
        raise NotFoundError(f"the hub has no model {source}", hint) from error
    except Exception as error:  # no network, a proxy, a server in trouble: the client's errors have no common root
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            hint = "free some space, or set HF_HOME to another disk"
            raise SetupError(f"cannot write into {constants.HF_HUB_CACHE}: {error.strerror}", hint) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = f"check the network and HF_HUB_OFFLINE, or bring the model along: celebctl setup {target} --from DIR"
        raise SetupError(f"cannot reach the hub for {source}: {reason}", hint) from error


# Face models from where they are published.


def fetch_pack(pack: Pack, root: Path, report: Report = ignore) -> Path:
    """Fetch the published archive of a pack and put its files into the library below `root`; returns their folder.

    The archive stays until they are in their place: a full disk does not cost a second download.
    """
    refuse_offline(pack.name, pack.name)
    archive = root / "cache" / f"{pack.name}.zip"
    require_space(root, 2 * pack.size)
    if not archive.exists():
        _first_of(pack, archive, lambda have: report(have, pack.size, archive.name))
    try:
        folder = install_pack(pack.name, archive, root)
    except IntegrityError:
        archive.unlink(missing_ok=True)
        raise
    archive.unlink(missing_ok=True)
    return folder


def _first_of(pack: Pack, archive: Path, report: Callable[[int], object]) -> None:
    """From the first address that has it; they offer the same bytes, so one goes on where another stopped."""
    *others, last = pack.urls
    for url in others:
        try:
            return download(url, archive, size=pack.size, sha256=pack.sha256, report=report)
        except NotFoundError:
            continue
    return download(last, archive, size=pack.size, sha256=pack.sha256, report=report)


# A model from a folder.


def find_source(folder: Path, source: str, revision: str) -> Path:
    """The diffusers model below `folder`: itself, or the snapshot of `source` in what is a hub cache.

    `folder` may be a hub cache, a HF_HOME around one, or one repository's folder in it. Raises NotFoundError.
    """
    if (folder / INDEX_FILE).is_file():
        return folder
    repository = f"models--{source.replace('/', '--')}"
    caches = [folder, folder / "hub", *([folder.parent] if folder.name == repository else [])]
    for cache in caches:
        for name in (revision, "main"):
            found = cached_folder(source, name, cache)
            if found is not None and (found / INDEX_FILE).is_file():
                return found
    raise NotFoundError(
        f"{folder} holds neither a diffusers model ({INDEX_FILE}) nor a hub cache with {source}",
        f"on a machine with a network: celebctl setup, then copy {repository} from its hub cache",
    )


def install_model(folder: Path, target: str, known: KnownModel | None = None, report: Report = ignore) -> Path:
    """Copy a model's files from `folder` into the library, in one step, after checking that they are whole.

    Weights whose SHA-256 the table or a hub cache's own file name states are compared with it. Raises InvalidInputError
    (another family, files missing), IntegrityError (damaged), SetupError (disk).
    """
    refuse_folder(str(folder), folder)
    check_folder(folder)
    files = files_in(folder)
    place = installed_folder(target)
    total = sum((folder / name).stat().st_size for name in files)
    require_space(place, total)
    done = 0
    with atomic_directory(place) as new:
        for name in files:
            start, stated = done, (known.sha256.get(name) if known else None) or _stated(folder / name)
            digest = _copy(folder / name, new / name, lambda copied, n=name, s=start: report(s + copied, total, n))
            if stated and digest != stated:
                raise IntegrityError(f"{folder / name} has SHA-256 {digest}, not {stated}", "fetch that file again")
            done += (new / name).stat().st_size
    return place


def _copy(source: Path, copy: Path, report: Callable[[int], object]) -> str:
    """Copy one file, through links; returns its SHA-256."""
    digest, done = hashlib.sha256(), 0
    copy.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, copy.open("wb") as writer:
        while block := reader.read(BLOCK):
            writer.write(block)
            digest.update(block)
            done += len(block)
            report(done)
    return digest.hexdigest()


def _stated(path: Path) -> str | None:
    """The SHA-256 a hub cache keeps as the name of a large file; None for any other file."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


# Whether a folder can be opened.


def check_folder(folder: Path) -> None:
    """Raise IntegrityError unless a model's weights can be opened and fit its configs. Reads headers, not weights."""
    index = read_json(folder / INDEX_FILE)
    for part, config_key, tensor, axis in (
        ("unet", "in_channels", "conv_in.weight", 1),
        ("vae", "latent_channels", "post_quant_conv.weight", 1),
        ("text_encoder", "hidden_size", "embeddings.token_embedding.weight", 1),
        ("text_encoder_2", "hidden_size", "embeddings.token_embedding.weight", 1),
    ):
        if part not in parts_of(index):
            continue
        shapes = _shapes(folder, part)
        found = next((shape for name, shape in shapes.items() if name.endswith(tensor)), None)
        stated = read_json(folder / part / "config.json").get(config_key)
        if found is not None and stated is not None and (len(found) <= axis or found[axis] != stated):
            raise IntegrityError(
                f"{folder / part}: {tensor} is {list(found)}, but config.json says {config_key} {stated}",
                "the files belong to different models: fetch them again",
            )


def _shapes(folder: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a part, from the headers. Raises IntegrityError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for name in files_in(folder):
        if not (name.startswith(f"{part}/") and name.endswith(".safetensors")):
            continue
        try:
            with cast(Any, safe_open)(str(folder / name), framework="np") as file:
                shapes |= {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{folder / name} is damaged: {error}", "fetch it again") from error
    if not shapes:
        raise IntegrityError(f"{folder / part} holds no tensors", "fetch it again")
    return shapes
