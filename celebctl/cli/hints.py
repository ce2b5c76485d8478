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
LIBRARY: dict[str, str] = {
    "name_taken": "choose another name, or replace the person with --force (see: celebctl show {name})",
    "ambiguous_identity": "choose the model with --for-model, such as: celebctl show {name} --for-model {model_key}",
    "invalid_model_key": "celebctl list shows the model keys",
    "empty_library": "learn a person first: celebctl learn face.jpg --name {name}",
    "no_bundle": "export one: celebctl export --model {model}",
    "no_name_in_file": "name the person: celebctl learn {photo} --name alice",
    "image_count": "use --count 1 to {most}",
    "seed_range": "use --seed 0 to {last}",
    "select_person": "choose one with --which 1 to --which {count}",
    "basis_needed": "add --basis celeb_basis.pt, which extract_pt.py of the release writes beside the coefficients",
    "not_a_basis": "give the release's celeb_basis.pt with --basis",
    "basis_mismatch": "use the basis they were learned on; embeddings need no --basis",
    "model_mismatch": "choose the model with --model: these vectors fit {family}",
    "no_name_in_embedding": "name the person: celebctl import {path} --name alice",
    "unknown_format": "use --to with one of diffusers, webui, comfyui, invoke",
    "consent_form": "use --consent self, --consent synthetic or --consent signed:FILE",
    "missing_file": "check the path",
}

#: celebctl.evaluation, celebctl.bench.
EVALUATION: dict[str, str] = {}

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
