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
LEARNING: dict[str, str] = {
    "steps_range": "use --steps 1 to 100000",
    "seed_range": "use --seed 0 to 9223372036854775807",
    "instant_steps": "leave out --instant or --steps",
    "instant_resume": "leave out --instant or --resume",
    "no_checkpoint": "run the same command without --resume",
    "checkpoint_damaged": "run the same command without --resume",
    "checkpoint_mismatch": "run the same command without --resume",
    "no_mapper": "train one on a folder of photos, celebctl basis train photos, or leave out --instant",
    "measure_faces": "measure them once: celebctl basis build --faces",
    "choose_names": "choose the names again: celebctl basis build --force",
    "names_chosen": "replace them with --force; people you have learned keep what they were learned with",
    "too_few_names": "choose more names: celebctl basis build --names names.txt",
    "faces_not_needed": "measure them nevertheless with --force",
    "mapper_of_other_basis": "use the model's own names, or train one: celebctl basis train photos --force",
    "mapper_exists": "replace it with --force",
    "model_has_mapper": "train one nevertheless with --force",
    "training_unfinished": "continue with --resume, or begin again with --force",
    "mapper_not_better": "add photos of more people, or use more --steps; with --resume the photos are not read again",
    "mapper_steps": "use --steps 1 to 1000000",
    "mapper_seed": "use --seed 0 to 4611686018427387903",
    "torch_without_cuda": "install a CUDA build of torch, or use --device cpu",
    "different_models": "learn both for the same model: celebctl learn photo.jpg --name {name}",
    "identity_of_other_model": "choose the model they were learned for with --model",
    "mix_needs_two": "celebctl mix alice bob --name carol",
    "mix_weight": "use --weight 0 (the first) to 1 (the second), or --weights 2,1,1 for more people",
}

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
