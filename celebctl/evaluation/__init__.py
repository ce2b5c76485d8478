"""Evaluation of learned people: likeness, prompt fidelity, identity leakage between two people, and costs.

| module | content |
|---|---|
| prompts | evaluation prompts in the paper's categories |
| scorers, clip | networks that learning never uses, which read faces, poses, attributes and CLIP scores from images |
| references | what a person really looks like: renders of a drawn world, or the photo |
| cohorts | who is evaluated together |
| runner, results | generating and scoring, person by person; records on disk, so an interrupted run continues |
| image_metrics, metrics, intervals | records to metrics with confidence intervals |
| report, charts, html_report | tables, JSON and a self-contained HTML page |
| session | one evaluation from the open model to the results |

What this package does not know: how people are learned. Anything that generates images from prompts can be evaluated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from celebctl_runtime.progress import ProgressCallback, ignore_progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.model import Model
    from celebctl_runtime.identity import Identity

    from .metrics import CohortMetrics
    from .scorers import Scorer


class EvaluationOptions(TypedDict, total=False):
    """Options of `evaluate`.

    Attributes:
        prompts: A prompt file (see `read_prompts`); default: the paper's categories.
        seeds: Images per prompt; default 2.
        scorer: Scores images; default: the model's own scoring networks, else the face models of learning.
        out: Folder of records and the report, where an interrupted evaluation continues; default: none is kept.
        progress: Called while learning and evaluating.
    """

    prompts: Path | str | None
    seeds: int
    scorer: Scorer | None
    out: Path | str | None
    progress: ProgressCallback


def evaluate(
    model: Model | str,
    people: Sequence[Identity] | int | None = None,
    photos: Mapping[str, Image] | Path | str | None = None,
    **options: Unpack[EvaluationOptions],
) -> CohortMetrics:
    """Measure how well people are generated, scored by networks that learning never uses.

    Args:
        model: An open model, or a name or folder of one.
        people: Identities of this model; or the number of unseen people to learn and evaluate (mini only, default 12).
        photos: Of identities: a photo by name (RGB), or a folder with ``NAME.jpg`` and so on.
        options: See `EvaluationOptions`.

    Returns:
        Metrics with 95 % confidence intervals over people; keys as in `celebctl.evaluation.metrics`.

    Raises:
        UsageError: Photos without people or the other way round, an invalid prompt, or ``out`` of other settings.
        NotFoundError: A photo, prompt file or model is missing, or the model has no world of unseen people.
        InvalidInputError: No face was found in a photo.

    Example:
        >>> from celebctl.evaluation import evaluate
        >>> metrics = evaluate("mini", 2, seeds=1)  # doctest: +SKIP
        >>> print(metrics.summary["likeness"], metrics.summary["prompt_fidelity"])  # doctest: +SKIP
    """
    from celebctl.learning.config import CLEAN
    from celebctl.model import Model
    from celebctl_runtime.errors import UsageError

    from .report import write_report
    from .session import EvalContext, LibraryEvaluation, WorldEvaluation, choose_scorer

    listed = not (people is None or isinstance(people, int))
    if listed != (photos is not None):
        raise UsageError("people are compared with their photos", "pass both people and photos", reason="people_photos")
    model = Model.load(model) if isinstance(model, str) else model
    context = EvalContext(model, options.get("scorer") or choose_scorer(model.parts, model.analyser))
    with_pairs = people is None or isinstance(people, int) or len(people) > 1
    prompts, out = options.get("prompts"), options.get("out")
    config = context.configure(Path(prompts) if prompts else None, options.get("seeds", 2), with_pairs=with_pairs)
    with ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celebctl-eval-")))
        if people is None or isinstance(people, int):
            session = WorldEvaluation(context, config, CLEAN, people or 12, celebrities=False)
        else:
            session = LibraryEvaluation(context, config, people, _photos_of(people, photos), [None] * len(people))
        results = session.run(folder, progress=options.get("progress", ignore_progress))
        if out:
            write_report(results, folder, session.settings())
    return results[0].metrics


def _photos_of(people: Sequence[Identity], photos: Mapping[str, Image] | Path | str | None) -> list[Image]:
    from celebctl_models.faces.photos import open_photo
    from celebctl_runtime.errors import NotFoundError

    from .session import find_photo

    if isinstance(photos, Mapping):
        missing = [one.name for one in people if one.name not in photos]
        if missing:
            raise NotFoundError(
                f"there is no photo of {', '.join(missing)}", "add it to photos", reason="photo_missing"
            )
        return [photos[one.name] for one in people]
    return [open_photo(find_photo(Path(photos or "."), one.name)) for one in people]
