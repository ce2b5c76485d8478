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
MODELS: dict[str, str] = {
    "model_changed": "install a newer celebctl, or use a local copy: celebctl download MODEL --from DIR",
    "no_network": "check the network and HF_HUB_OFFLINE, or use a local copy: celebctl download {name} --from DIR",
    "offline": "unset HF_HUB_OFFLINE, or use a local copy: celebctl download {name} --from DIR",
    "download_moved": "install a newer celebctl, or use a local copy with --from DIR",
    "download_refused": "try again later, or use a local copy with --from DIR",
    "no_model_in_folder": (
        "on a machine with a network: celebctl download {source}, then copy {repository} from its hub cache"
    ),
    "face_models_missing": "celebctl download {name}",
    "face_models_folder": "pass an existing folder with --face-models DIR",
    "face_models_unusable": "download the face models again, or use another folder with --face-models DIR",
    "licence_not_accepted": "read {terms}, then: celebctl download {name} --accept-licence",
    "several_faces": "choose one by its number from the left, such as --face 1",
    "provider_missing": "celebctl doctor shows what is installed and what is missing",
    "no_photo": "check the path, or draw a photo: celebctl sample-photo {sample}",
}

#: celebctl.learning, celebctl.basis, celebctl.mapper_training, celebctl.model.
LEARNING: dict[str, str] = {}

#: celebctl.library, celebctl.settings, celebctl.textual_inversion, celebctl.pipeline, celebctl.doctor.
LIBRARY: dict[str, str] = {}

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
