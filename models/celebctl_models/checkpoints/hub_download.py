"""Downloads: models from the Hugging Face hub, face models from their publisher, or either from a local folder.

huggingface_hub downloads models into its own cache and reads HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and
HF_ENDPOINT. After an interruption every complete file is kept, and the incomplete one starts over (huggingface_hub
2.4). Weights are checked against the SHA-256 that the hub, or the table of known models, states.
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

from celebctl_models.faces.download import BLOCK, download, refuse_offline, require_https
from celebctl_models.faces.packs import Pack, PackFile, install_pack
from celebctl_runtime.errors import CelebctlError, IntegrityError, InvalidInputError, NotFoundError, SetupError
from celebctl_runtime.files import atomic_directory, sha256_file
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.redaction import without_token

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

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _snapshot_download(source: str, revision: str, patterns: Sequence[str], bar: Any = None) -> Path:
    """Download those files of a hub repository that match glob patterns into the client's cache."""
    import huggingface_hub

    download_all = cast("Callable[..., str]", getattr(huggingface_hub, "snapshot_download"))  # noqa: B009  untyped
    return Path(download_all(source, revision=revision, allow_patterns=list(patterns), tqdm_class=bar))


# Models from the hub.


@dataclass(frozen=True)
class WantedFile:
    """One file of a hub repository.

    Attributes:
        path: Relative to the repository.
        size: Bytes.
        sha256: Hexadecimal, where the hub (for large files) or the table of known models states it.
        here: Whether the cache has it.
    """

    path: str
    size: int
    sha256: str | None
    here: bool


@dataclass(frozen=True)
class Plan:
    """The files of a model on the hub, before they are downloaded.

    Attributes:
        source: The hub id.
        revision: As requested: a branch, tag or commit.
        commit: The commit that the revision is now.
        licence: As the hub's model card states it.
        files: Those that celebctl reads.
        name: The known name or hub id that was asked for.
    """

    source: str
    revision: str
    commit: str
    licence: str | None
    files: tuple[WantedFile, ...]
    name: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def left(self) -> int:
        """Bytes still to download."""
        return sum(file.size for file in self.files if not file.here)


def plan_model(source: str, revision: str, known: KnownModel | None = None, name: str = "") -> Plan:
    """List the files of a model on the hub. Only its model_index.json is downloaded.

    Args:
        source: The hub id.
        revision: A branch, tag or commit.
        known: The model's row in the table of known models.
        name: The known name that was asked for; default the hub id.

    Raises:
        NotFoundError: No such repository or revision.
        InvalidInputError: A model of another family, or one without safetensors.
        IntegrityError: Weights with another SHA-256 than in the table.
        SetupError: Offline, no network, or no permission.
    """
    name = name or source
    refuse_offline(source, name)
    with _translate_hub_errors(source, name), _no_bars():
        from huggingface_hub import HfApi

        info = HfApi().model_info(source, revision=revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        if INDEX_FILE not in siblings:
            raise InvalidInputError(f"{source} is not a diffusers model: no {INDEX_FILE}", "use another repository")
        folder = _snapshot_download(source, revision, [INDEX_FILE])
    refuse_folder(source, folder, list(siblings))
    files = tuple(_wanted(siblings[path], folder, known) for path in wanted_files(siblings))
    licence = info.card_data.to_dict().get("license") if info.card_data else None
    return Plan(source, revision, folder.name, licence, files, name)


def refuse_folder(source: str, folder: Path, names: list[str] | None = None) -> None:
    """Raise InvalidInputError when a model is of another family, or has no safetensors.

    Args:
        source: The model's name in the message.
        folder: Its folder, which has at least model_index.json.
        names: Relative paths of its files; default the files in `folder`.
    """
    refuse_index(source, read_json(folder / INDEX_FILE))
    missing = missing_parts(folder, names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InvalidInputError(
            f"{source} has no {missing[0]}{more}",
            "use a diffusers folder with full safetensors (not only .bin files or fp16 variants)",
        )


def _wanted(sibling: "RepoSibling", folder: Path, known: KnownModel | None) -> WantedFile:
    """One file of the plan. Raises IntegrityError when the hub states another SHA-256 than the table."""
    path = sibling.rfilename
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    stated = known.sha256.get(path) if known else None
    if stated and sha256 and stated != sha256:
        raise IntegrityError(
            f"{path} on the hub has another SHA-256 than in the table of known models",
            "install a newer celebctl, or install the model from a folder",
            reason="model_changed",
        )
    return WantedFile(path, sibling.size or 0, sha256 or stated, (folder / path).exists())


def fetch_model(plan: Plan, progress: ProgressCallback = ignore_progress) -> Path:
    """Download the missing files of a planned model into the hub client's cache; returns the model's folder.

    `progress` gets the bytes of all files.

    Raises:
        IntegrityError: A file has another SHA-256 than stated; the file is deleted.
        SetupError: A file could not be downloaded, or as `plan_model`.
    """
    from huggingface_hub import constants

    require_space(Path(constants.HF_HUB_CACHE), plan.left)
    with _translate_hub_errors(plan.source, plan.name):
        folder = _snapshot_download(plan.source, plan.revision, MODEL_FILES, _progress_bar(plan, progress))
    missing = [file.path for file in plan.files if not (folder / file.path).is_file()]
    if missing:  # the client returns an incomplete snapshot from its cache when the connection fails
        hint = "check the network and download again: complete files are kept"
        raise SetupError(f"the download of {plan.source} is incomplete: {missing[0]} is missing", hint)
    for file in plan.files:
        if file.sha256 and sha256_file(folder / file.path) != file.sha256:
            (folder / file.path).resolve().unlink()
            hint = "download again: the damaged file is deleted"
            raise IntegrityError(f"{file.path} of {plan.source} does not have the SHA-256 {file.sha256}", hint)
    progress(Progress(plan.source, plan.size, plan.size))
    refuse_folder(plan.source, folder)
    check_folder(folder)
    return folder


def fetch_folder(location: Location, files: Sequence[str] = MODEL_FILES) -> Path:
    """Download a model's `files` (glob patterns) from the hub, or find them in its cache; returns the folder."""
    with _translate_hub_errors(location.source, location.source):
        return _snapshot_download(location.source, location.revision, files)


def _progress_bar(plan: Plan, progress: ProgressCallback) -> Any:
    """A progress bar class for the hub client: it prints nothing and reports the bytes written."""
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
                    progress(Progress(plan.source, min(here + int(self.written), plan.size), plan.size))
            return None

    return Bar


def require_space(folder: Path, size: int) -> None:
    """Raise SetupError when the disk of `folder`, which need not exist yet, has less than `size` bytes free."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise SetupError(
            f"{folder} has {free / 1e9:.1f} GB free, and {size / 1e9:.1f} GB are needed",
            "free some space, or set HF_HOME (models) or CELEBCTL_HOME (face models) to a larger disk",
        )


@contextlib.contextmanager
def _no_bars() -> Generator[None]:
    """Disable the hub client's progress bars within a `with` block."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _refuse_insecure_redirects() -> None:
    """Make the hub client refuse redirects from https to another scheme; its own rules for the token stay."""
    from huggingface_hub import get_session

    client: Any = get_session()
    if refuse_insecure_redirect not in client.event_hooks["response"]:
        hooks = [*client.event_hooks["response"], refuse_insecure_redirect]
        client.event_hooks = {**client.event_hooks, "response": hooks}


def refuse_insecure_redirect(response: Any) -> None:
    """Raise SetupError when a response of httpx redirects from https to another scheme."""
    target = response.headers.get("location") if response.is_redirect else None
    if target is not None and response.request.url.scheme == "https":
        require_https(str(response.request.url), str(response.request.url.join(target)))


@contextlib.contextmanager
def _translate_hub_errors(source: str, name: str) -> Generator[None]:
    """Raise the hub client's errors as CelebctlErrors. Without the client: ModuleNotFoundError."""
    from huggingface_hub import constants, errors

    _refuse_insecure_redirects()
    try:
        yield
    except (CelebctlError, KeyboardInterrupt):
        raise
    except errors.GatedRepoError as error:
        hint = f"accept its terms at https://huggingface.co/{source}, then set HF_TOKEN"
        raise SetupError(f"the model {source} is gated", hint) from error
    except errors.RevisionNotFoundError as error:
        hint = "install a newer celebctl, or install the model from a folder"
        raise NotFoundError(f"{source} no longer has this revision", hint, reason="model_changed") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        hint = "check the spelling; for a private model set HF_TOKEN"
        raise NotFoundError(f"the hub has no model {source}", hint) from error
    except Exception as error:  # no network, a proxy, a server error: the client's errors have no common base class
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            hint = "free some space, or set HF_HOME to another disk"
            raise SetupError(f"cannot write into {constants.HF_HUB_CACHE}: {error.strerror}", hint) from error
        message = without_token((str(error).strip() or type(error).__name__).splitlines()[0])
        hint = "check the network and HF_HUB_OFFLINE, or install the model from a folder"
        problem = f"cannot reach the hub for {source}: {message}"
        raise SetupError(problem, hint, reason="no_network", name=name) from error


# Face models from their publisher.


def fetch_pack(pack: Pack, root: Path, progress: ProgressCallback = ignore_progress) -> Path:
    """Download a pack's published archive or files and install it in the library `root`; returns its folder.

    What is downloaded is kept until the pack is installed: a full disk does not cost a second download. `progress` gets
    the bytes of each file. Raises SetupError, NotFoundError, BusyError or IntegrityError, as `download`.
    """
    refuse_offline(pack.name, pack.name)
    cache = root / "cache"
    downloaded = cache / f"{pack.name}.zip" if pack.archive_size else cache / pack.name
    require_space(root, 2 * pack.size)
    for file in pack.downloads:
        path = downloaded if pack.archive_size else downloaded / file.name
        if not path.exists():
            _download_file(file, path, progress)
    try:
        folder = install_pack(pack.name, downloaded, root)
    except IntegrityError:
        _remove(downloaded)
        raise
    _remove(downloaded)
    return folder


def _remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _download_file(file: PackFile, path: Path, progress: ProgressCallback) -> None:
    """Download from the first address that has the file; all have the same bytes, so a partial file is continued."""
    *others, last = file.urls
    for url in others:
        try:
            return download(url, path, size=file.size, sha256=file.sha256, progress=progress)
        except NotFoundError:
            continue
    return download(last, path, size=file.size, sha256=file.sha256, progress=progress)


# A model from a folder.


def find_source(folder: Path, source: str, revision: str) -> Path:
    """The diffusers model in `folder`: the folder itself, or the snapshot of hub id `source` in a hub cache.

    `folder` may be a hub cache, its HF_HOME, or one repository's folder in it. Raises NotFoundError.
    """
    if (folder / INDEX_FILE).is_file():
        return folder
    repository = f"models--{source.replace('/', '--')}"
    caches = [folder, folder / "hub", *([folder.parent] if folder.name == repository else [])]
    for cache in caches:
        for name in (revision, "main"):
            snapshot = cached_folder(source, name, cache)
            if snapshot is not None and (snapshot / INDEX_FILE).is_file():
                return snapshot
    raise NotFoundError(
        f"{folder} contains neither a diffusers model ({INDEX_FILE}) nor a hub cache with {source}",
        f"download the model on a machine with a network, then copy {repository} from its hub cache",
        reason="no_model_in_folder",
        source=source,
        repository=repository,
    )


def install_model(
    folder: Path, name: str, known: KnownModel | None = None, progress: ProgressCallback = ignore_progress
) -> Path:
    """Copy a model's files from `folder` into the library, atomically and with checks; returns the new folder.

    Args:
        folder: A diffusers folder, or a snapshot in a hub cache.
        name: The known name or hub id under which `locate` finds it.
        known: Its row in the table of known models. Weights are compared with the SHA-256 that it, or a hub cache,
            states.
        progress: Gets the bytes of all files.

    Raises:
        InvalidInputError: A model of another family, or missing files.
        IntegrityError: Damaged files.
        SetupError: Not enough disk space.
    """
    refuse_folder(str(folder), folder)
    check_folder(folder)
    files = files_in(folder)
    target = installed_folder(name)
    total = sum((folder / file).stat().st_size for file in files)
    require_space(target, total)
    done = 0
    with atomic_directory(target) as new:
        for file in files:
            expected = (known.sha256.get(file) if known else None) or _blob_sha256(folder / file)
            digest = _copy(folder / file, new / file, done, total, progress)
            if expected and digest != expected:
                hint = "download that file again"
                raise IntegrityError(f"{folder / file} has SHA-256 {digest}, not {expected}", hint)
            done += (new / file).stat().st_size
    return target


def _copy(source: Path, copy: Path, done: int, total: int, progress: ProgressCallback) -> str:
    """Copy one file, following links; returns its SHA-256. `done` of `total` bytes were copied before."""
    digest = hashlib.sha256()
    copy.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, copy.open("wb") as writer:
        while block := reader.read(BLOCK):
            writer.write(block)
            digest.update(block)
            done += len(block)
            progress(Progress(source.name, done, total))
    return digest.hexdigest()


def _blob_sha256(path: Path) -> str | None:
    """The SHA-256 that is the file name of a large file in a hub cache; None for any other file."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


# Checks of a folder.


def check_folder(folder: Path) -> None:
    """Raise IntegrityError unless a model's weights can be opened and fit its configs. Only headers are read."""
    index = read_json(folder / INDEX_FILE)
    for part, config_key, tensor in (
        ("unet", "in_channels", "conv_in.weight"),
        ("transformer", "in_channels", "pos_embed.proj.weight"),
        ("vae", "latent_channels", "post_quant_conv.weight"),
        ("text_encoder", "hidden_size", "embeddings.token_embedding.weight"),
        ("text_encoder_2", "hidden_size", "embeddings.token_embedding.weight"),
    ):
        if part not in parts_of(index):
            continue
        shapes = _shapes(folder, part)
        shape = next((shape for name, shape in shapes.items() if name.endswith(tensor)), None)
        size = read_json(folder / part / "config.json").get(config_key)
        if shape is not None and size is not None and (len(shape) <= 1 or shape[1] != size):
            raise IntegrityError(
                f"{folder / part}: {tensor} has shape {list(shape)}, but config.json has {config_key} {size}",
                "the files belong to different models: download them again",
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
            raise IntegrityError(f"{folder / name} is damaged: {error}", "download it again") from error
    if not shapes:
        raise IntegrityError(f"{folder / part} has no tensors", "download it again")
    return shapes
