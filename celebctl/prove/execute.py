"""Run the stages one after the other. What they measure is in stages.py."""

from __future__ import annotations

import logging
import time
import traceback
from pathlib import Path
from typing import Any

from celebctl.library import Library
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

from .run import ProveOptions, ProveRun, Skipped
from .stages import STAGES, Stage

logger = logging.getLogger(__name__)


def prove(
    folder: Path,
    options: ProveOptions | None = None,
    *,
    library: Library | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> ProveRun:
    """Run every stage that is not finished, one after the other; a stage that fails does not stop the others.

    Args:
        folder: Receives ``report.html``, ``report.json``, images, learned people and the bundle. An interrupted run
            continues there.
        options: See `ProveOptions`; default: mini.
        library: Where models, face models and engines are; default: the user's.
        overwrite: Begin again, also in the folder of other options.
        progress: Called with the name of each stage before it begins, and with what it reports.

    Returns:
        The run; its ``document`` is the report.

    Raises:
        UsageError: The folder holds a run with other options.
        SetupError: The folder cannot be written.

    Example:
        >>> from celebctl.prove import ProveOptions, prove
        >>> run = prove(folder / "proof", ProveOptions(minutes=0))  # no stage begins
        >>> run.stages["learn"]["status"]
        'skipped'
    """
    run = ProveRun(folder, options or ProveOptions(), library or Library(), overwrite)
    for number, (name, stage) in enumerate(STAGES.items()):
        if run.stages.get(name, {}).get("status") == "done":
            continue
        progress(Progress(name, number, len(STAGES)))
        run.progress = progress
        run.stages[name] = _run_stage(run, name, stage)
        run.save()
    progress(Progress("finished", len(STAGES), len(STAGES)))
    return run


def _run_stage(run: ProveRun, name: str, stage: Stage) -> dict[str, Any]:
    """The entry of one stage. Any error of it is a finding."""
    before = run.stages.pop(name, {}).get("seconds", 0.0)
    if run.seconds >= 60 * run.options.minutes:
        reason = f"the time of {run.options.minutes:g} minutes was used up"
        return {"status": "skipped", "seconds": before, "reason": reason}
    started = time.monotonic()
    try:
        entry: dict[str, Any] = {"status": "done", "result": dict(stage(run))}
    except Skipped as reason:
        entry = {"status": "skipped", "reason": str(reason)}
    except CelebctlError as error:
        entry = {"status": "failed", "code": error.code, "problem": error.problem, "hint": error.hint}
        logger.warning("%s failed: %s", name, error.problem)
    except Exception as error:  # what nobody expected is what a report is for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
        problem = f"unexpected {type(error).__name__} at {where}: {error}"[:600]
        entry = {"status": "failed", "code": "bug", "problem": problem, "hint": "please send this report"}
        logger.warning("%s failed: %s", name, problem)
    return {**entry, "seconds": round(before + time.monotonic() - started, 2)}
