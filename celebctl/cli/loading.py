"""Opening what a command works with: the model or its token tables, the face models, and room in memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.checkpoints.token_tables import TokenTables

SMALL, TOGETHER = 100_000_000, 64  # UNets below so many parameters learn from so many views at once


def face_folder(settings: "Settings", model: str, flag: str | None) -> Path:
    """Where the face models are: what was said, what the model brings along, or the default pack."""
    from celebctl_models.faces.packs import choose_face_models
    from celebctl_runtime.paths import data_root

    return choose_face_models(settings.text("face_models", flag), model, data_root())


def open_model(console: CliConsole, model: str, device: str) -> "DiffusionParts":
    """The model, on the device it will compute on."""
    with console.status(f"opening {model}"):
        from celebctl.learning.device import select_device
        from celebctl_models.checkpoints.diffusion import load_parts

        place = select_device(device)
        return load_parts(model, dtype=place.dtype, device=place.device)


def open_tables(console: CliConsole, settings: "Settings", model: str | None) -> "TokenTables":
    """The token tables of the model that was asked for, or is set: all that a basis is made of."""
    chosen = str(settings.text("model", model))
    with console.status(f"opening {chosen}"):
        from celebctl_models.checkpoints.token_tables import load_tables

        return load_tables(chosen)


def prepared(parts: Any, library: "Library", model_key: str, face_models: Path) -> Any:
    """The model, or its tables, with what `celebctl basis` chose, measured and trained for it."""
    from celebctl.basis.celebrities import with_faces
    from celebctl.basis.names import ChosenNames, with_names
    from celebctl.mapper_training.store import with_mapper

    named = with_names(parts, ChosenNames(library.root, model_key).file)
    # the faces also tell where the model draws them, whoever the mapper is from
    return with_mapper(with_faces(named, library.cache(), face_models), library.cache(), face_models)


def make_room(console: CliConsole, parts: "DiffusionParts", views: int, low_memory: bool) -> int:
    """How many views to learn from at once on the model's device. Says what memory that takes, in one line, but for
    models so small (UNets below 100 M weights) that they learn anywhere: there nothing is counted and nothing said."""
    from celebctl.learning.device import free_memory, max_micro_batch, weight_bytes

    if low_memory:
        parts.unet.enable_gradient_checkpointing()
    elif sum(weight.numel() for weight in parts.unet.parameters()) < SMALL:
        return TOGETHER  # fits anywhere, and counting takes a second
    parts.vae.enable_slicing()  # one picture keeps a processor busy; sixteen take more memory than all of learning
    free = free_memory(str(next(parts.unet.parameters()).device))
    limit = int(0.8 * free)
    wanted = 1 if low_memory else views
    together, taken = max_micro_batch(parts, wanted, limit, checkpointing=low_memory)
    said = memory_line(weight_bytes(parts), taken, free, f"{together} of {views} views at once")
    if taken > limit:
        console.warn(f"{said}: this may not fit{'' if low_memory else ', try --low-memory'}")
    else:
        console.info(said)
    return together


def memory_line(model: int, learning: int, free: int, views: str) -> str:
    """What learning takes in all and what there is, from bytes; ``free`` as counted with the model loaded."""
    total, model_gb, learning_gb, free_gb = (f"{n / 1e9:.1f} GB" for n in (model + learning, model, learning, free))
    parts = f"{model_gb} the model, {learning_gb} learning, {views}"
    return f"memory: about {total} ({parts}); {free_gb} free beside the model"
