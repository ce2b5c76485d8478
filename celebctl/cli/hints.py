"""Hints of the command line: for the ``reason`` of an error, the command or option that helps.

Library code does not know the command line. It raises errors with a ``reason`` and named ``values``; the texts here
are formatted with those values. A test parses every ``celebctl`` command below with the application.
"""

import shlex

from celebctl_runtime.errors import CelebctlError

#: Python packages: celebctl_runtime.
RUNTIME: dict[str, str] = {}

#: celebctl_export, engines.
EXPORT: dict[str, str] = {}

#: celebctl_models: checkpoints, faces.
MODELS: dict[str, str] = {}

#: celebctl.learning, celebctl.basis, celebctl.mapper_training, celebctl.model.
LEARNING: dict[str, str] = {}

#: celebctl.library, celebctl.settings, celebctl.textual_inversion, celebctl.pipeline, celebctl.doctor.
LIBRARY: dict[str, str] = {}

#: celebctl.evaluation, celebctl.bench.
EVALUATION: dict[str, str] = {
    "evaluation_settings_differ": "choose another folder with -o, or replace it with --force",
    "no_world": "evaluate people of your library: celebctl eval alice bob --photos photos",
    "clip_missing": "give the folder of a CLIP model with --clip, or leave --clip out",
    "clip_invalid": "give another folder with --clip",
}

HINTS: dict[str, str] = {**RUNTIME, **EXPORT, **MODELS, **LEARNING, **LIBRARY, **EVALUATION}


def hint_for(error: CelebctlError) -> str:
    """The hint to print: the command line's own where there is one and all its values are known, else the error's."""
    template = HINTS.get(error.reason)
    if template is None:
        return error.hint
    try:
        return template.format(**{name: shlex.quote(str(value)) for name, value in error.values.items()})
    except KeyError:
        return error.hint
