"""Hints of the command line: for the ``reason`` of an error, the command or option that helps.

Library code does not know the command line. It raises errors with a ``reason`` and named ``values``; the texts here
are formatted with those values. A test parses every ``celebctl`` command below with the application.
"""

import shlex

from celebctl_runtime.errors import CelebctlError

#: Python packages: celebctl_runtime.
RUNTIME: dict[str, str] = {
    "file_exists": "choose another name, or replace it with --force",
    "disk_full": "the disk is full: free some space and run the same command again",
    "not_writable": "choose another folder, for example with -o or the environment variable CELEBCTL_HOME",
    "newer_format": "upgrade celebctl",
    "invalid_name": "use 1 to 32 of the characters a-z 0-9 _ -, starting with a letter, for example --name alice",
    "no_identity_file": "see who is known: celebctl list",
    "no_bundle": "make one: celebctl export",
    "bundle_damaged": "make a new bundle: celebctl export",
    "bundle_busy": "run the same command again",
    "bundle_full": "make a bundle with more room: celebctl export --spare-rows {spare_rows}",
    "name_taken_in_bundle": "use another name, or remove the person first: celebctl rm {name}",
    "no_average_embeddings": "make a new bundle: celebctl export",
    "no_image_encoder": "make a new bundle: celebctl export",
    "unsafe_image": "change the prompt, or use another --seed",
    "engine_without_init_images": "use --device cpu or --device cuda",
    "init_image_missing": "name the image with --from IMAGE",
    "mask_missing": "name the mask with --mask MASK",
    "edit_changes_nothing": "say in the new prompt what is to change",
    "other_init_image": "name its own source with --from IMAGE",
    "other_mask": "name its own mask with --mask MASK",
    "threshold_out_of_range": "use --threshold above {minimum}, up to {maximum}",
    "hires_with_mask": "draw without --hires, then enlarge: celebctl gen PROMPT --from IMAGE --size WxH",
    "hires_too_small": "use --hires 2x, or a larger --hires WxH",
    "invalid_hires": "use --hires 2x, or --hires 1024x1024",
    "mask_without_image": "name the image to change with --from IMAGE",
    "mask_options_without_mask": "name a mask with --mask MASK, or leave out --mask-blur and --mask-invert",
    "mask_full": "leave out --mask, or --mask-invert",
    "mask_blur_out_of_range": "use --mask-blur {minimum} to {maximum}",
    "unknown_person": "learn the person (celebctl learn face.jpg --name {name}), or write \\<{name}> for plain text",
    "sampler_does_not_fit": "use --sampler {fitting}",
    "seed_out_of_range": "use --seed {minimum} to {maximum}",
    "steps_out_of_range": "use --steps {minimum} to {maximum}",
    "guidance_out_of_range": "use --cfg {minimum} to {maximum}",
    "strength_out_of_range": "use --strength above {minimum}, up to {maximum}",
    "strength_without_image": "use --strength together with --from IMAGE",
    "no_steps_left": "raise --strength or --steps",
    "threads_out_of_range": "use --threads {minimum} to {maximum}",
    "scale_out_of_range": "use --scale {minimum} to {maximum}",
    "likeness_out_of_range": "use --likeness {minimum} (the average celebrity) to {maximum} (as learned)",
    "invalid_likeness": "use --likeness 0.8 for all people, or --likeness alice=0.8,bob=1",
    "not_in_prompt_layout": "name {name} in the prompt, or leave {name} out of --layout",
    "not_in_prompt_likeness": "name {name} in the prompt, or leave {name} out of --likeness",
    "refine_strength_out_of_range": "use --refine-strength above {minimum}, up to {maximum}",
    "refine_strength_alone": "use --refine-strength together with --refine-faces",
    "no_refine_steps_left": "raise --refine-strength or --steps",
    "refine_with_mask": "leave out --mask or --refine-faces; the transparent parts of --from are a mask, too",
    "best_of_range": "use --best-of 1 to {most}",
    "no_people_to_find": "name a learned person (celebctl list), or leave out --refine-faces and --best-of",
    "weight_out_of_range": "use weights from {minimum} to {maximum}, or take brackets as text with --plain-prompt",
    "invalid_weight": "write (smile:1.3), \\( for a plain bracket, or use --plain-prompt",
    "too_many_brackets": "close some brackets, write \\( for a plain one, or use --plain-prompt",
    "too_many_wildcards": "use fewer wildcards and no file that names itself, or use --plain-prompt",
    "invalid_wildcard": "use letters, digits and _ . - only, without folders, or use --plain-prompt",
    "no_wildcard_file": "write {path}, one option per line, name its folder with --wildcards, or use --plain-prompt",
    "no_recipe": "use an image that celebctl gen wrote, saved with its metadata",
    "recipe_sampler": "draw with another one: --sampler {nearest}",
    "recipe_is_workflow": "see its prompt (celebctl inspect IMAGE), and draw it as a new image (celebctl gen PROMPT)",
    "no_bundle_of_recipe": "choose a model with --model, or a bundle with --bundle",
    "quality_of_png": "leave out --quality, or write JPEG or WebP",
    "quality_out_of_range": "use --quality {minimum} to {maximum}",
    "frame_out_of_range": "use --frame {minimum} to {maximum}",
}

#: celebctl_export, celebctl_runtime.backends.
EXPORT: dict[str, str] = {
    "broken_engine": "build the engines again: celebctl export --trt",
    "broken_graph": "export the bundle again: celebctl export",
    "cuda_failed": "check nvidia-smi, or use --device cpu",
    "cuda_libraries_missing": "pip install 'onnxruntime-gpu[cuda,cudnn]' {cublas}, or use --device cpu",
    "cuda_run_failed": "check nvidia-smi, set cuda_options to enable_cuda_graph=0, or use --device cpu",
    "cudnn_missing": "pip install 'onnxruntime-gpu[cudnn]', or use --device cpu",
    "driver_missing": "install the NVIDIA driver and check nvidia-smi, or use --device cpu",
    "driver_too_old": "check nvidia-smi and update the NVIDIA driver, or use --device cpu",
    "engine_not_measured": "check nvidia-smi and the CUDA libraries (celebctl doctor), then run the command again",
    "engine_too_large": "use a smaller --engine; --no-dynamic leaves out the engines that cover several sizes",
    "gpu_too_old": "use --device cpu",
    "duplicate_name": "rename one of them: celebctl rename {name} NEW_NAME",
    "engine_parity": "export with --dtype fp32 and build again; if that fails too, report it with all versions",
    "export_failed": "this model or version of torch is not supported: run with --debug and report it",
    "invalid_engine_size": "write BATCHxHEIGHTxWIDTH, such as --engine 1x512x512",
    "no_engine_fits": "use --device auto, or build one: celebctl export --trt --engine {size}",
    "no_engines": "build them: celebctl export --trt",
    "no_img2img": "use --device cpu or --device cuda",
    "ort_without_cuda": "pip uninstall onnxruntime; pip install 'celebctl[cuda]', or use --device cpu",
    "openvino_too_old": "pip install 'openvino>={oldest}', or use --device cpu",
    "out_of_gpu_memory": (
        "close other programs on the GPU (nvidia-smi lists them), use a smaller --size or fewer images, or --device cpu"
    ),
    "out_of_memory": "use a smaller --size, or close other programs",
    "parity": "try --dtype fp32; if that fails too, this model or version of torch is not supported",
    "provider_failed": "install versions of onnxruntime and {package} that fit, or use --device cpu",
    "provider_not_installed": "pip install {package}, or use --device cpu",
    "provider_unused": "use --device cpu",
    "provider_without_device": "check that the device and its driver are supported, or use --device cpu",
    "tensorrt_failed": "check nvidia-smi, use --device cpu, or build the engines again: celebctl export --trt",
    "tensorrt_unavailable": "pip install 'celebctl[trt]', or use --device cpu",
    "too_few_spare_rows": "use --spare-rows {rows}",
    "unknown_device": (
        "use --device auto, cpu, cuda, trt, openvino, webgpu, mlx or rtx; a GPU by its number is cuda:1 or trt:1"
    ),
    "unknown_dtype": "use --dtype fp32 or fp16",
    "unsupported_graph": "list what TensorRT does not support: celebctl export --check",
}

#: celebctl_models: checkpoints, faces.
MODELS: dict[str, str] = {
    "model_changed": "install a newer celebctl, or use a local copy: celebctl download MODEL --from DIR",
    "no_network": "check the network and HF_HUB_OFFLINE, or use a local copy: celebctl download {name} --from DIR",
    "offline": "unset HF_HUB_OFFLINE, or use a local copy: celebctl download {name} --from DIR",
    "not_a_safety_checker": "give an ONNX classifier with --safety-checker, or leave it out",
    "insecure_redirect": "check the proxy and the network, or use a local copy with --from DIR",
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
    "unknown_prediction": "use --prediction epsilon or --prediction v_prediction",
    "zero_snr_needs_v_prediction": "use --prediction v_prediction, or --no-zero-snr",
    "flow_has_one_schedule": "leave out --prediction and --zero-snr, in celebctl.json too",
    "clip_skip_range": "use --clip-skip 1 (the last layer) up to the number of layers, 12 for Stable Diffusion 1",
    "no_vae": "give one of its family with --vae FILE",
    "vae_of_other_family": "use an autoencoder of the checkpoint's family with --vae, or leave --vae out",
    "not_an_autoencoder": "give a file or folder of an autoencoder with --vae, or leave --vae out",
    "lora_weight_range": "use --lora {path}:0.8, with a weight from -4 to 4",
    "lora_not_safetensors": "use its .safetensors version with --lora",
    "lora_of_other_family": "use a LoRA that was trained for this family of models, or choose another --model",
    "unsupported_lora": "use a plain LoRA, of the layout of kohya's trainers or of diffusers",
    "lora_trains_tokens": "use a LoRA without token embeddings",
    "photograph_for_drawings": (
        "learn it nevertheless with --force, or with a model of photographs:"
        " celebctl download sd15; celebctl download yunet_sface;"
        " celebctl learn {photo} --name alice --model sd15 --face-models yunet_sface ({photograph_model})"
    ),
    "drawing_for_photographs": "learn it nevertheless with --force, or with mini: celebctl learn {photo} --model mini",
    "no_photo": "check the path, or draw a photo: celebctl sample-photo {sample}",
}

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
    "prompt_without_name": "write {{}} once where the name goes, such as --prompt 'a photo of {{}}'",
    "faces_not_needed": "measure them nevertheless with --force",
    "mapper_of_other_basis": "use the model's own names, or train one: celebctl basis train photos --force",
    "mapper_of_other_faces": (
        "leave out --face-models, or train a mapper for them:"
        " celebctl basis train photos --face-models {face_models} --force"
    ),
    "mapper_exists": "replace it with --force",
    "model_has_mapper": "train one nevertheless with --force",
    "training_unfinished": "continue with --resume, or begin again with --force",
    "mapper_not_better": "add photos of more people, or use more --steps; with --resume the photos are not read again",
    "mapper_steps": "use --steps 1 to 1000000",
    "mapper_seed": "use --seed 0 to 4611686018427387903",
    "not_a_tiny_autoencoder": "give --tiny-vae a diffusers folder of an AutoencoderTiny, or NAME_decoder.safetensors",
    "tiny_autoencoder_mismatch": "use taesd for Stable Diffusion 1.x and 2.x, taesdxl for XL, or leave --tiny-vae out",
    "torch_without_cuda": "install a CUDA build of torch, or use --device cpu",
    "different_models": "learn both for the same model: celebctl learn photo.jpg --name {name}",
    "identity_of_other_model": "choose the model they were learned for with --model",
    "mix_needs_two": "celebctl mix alice bob --name carol",
    "mix_weight": "use --weight 0 (the first) to 1 (the second), or --weights 2,1,1 for more people",
}

#: celebctl.library, celebctl.settings, celebctl.textual_inversion, celebctl.pipeline, celebctl.doctor.
LIBRARY: dict[str, str] = {
    "other_token_table": (
        "learn the person for this model (celebctl learn face.jpg --name {name}), or take the embedding as it is"
        " (celebctl export-embedding {name}; celebctl import {name}.safetensors --name {name})"
    ),
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
    "frames_out_of_range": "use --frames {minimum} to {maximum}",
    "fps_out_of_range": "use --fps 0.1 to 60",
    "hold_out_of_range": "use --hold {minimum} to {maximum} seconds",
    "one_key_prompt": "name a person and a state: celebctl animate {person} smiling, or give two prompts",
    "too_few_frames": "use --frames {least} or more",
    "animation_too_large": "use fewer --frames, or a smaller --size",
    "video_missing": "pip install 'celebctl[video]', or write a .gif, .webp or .apng with -o",
    "unknown_format": "use --to with one of diffusers, webui, comfyui, invoke",
    "public_figure": "with the consent of {name}, learn the photo with --force, which is recorded",
    "no_references": "give a folder of photos named after the people in them with --public-figures",
    "training_forbidden": "ask its owner or use another photo; with their permission, learn it with --force",
    "consent_form": "use --consent self, --consent synthetic or --consent signed:FILE",
    "missing_file": "check the path",
    "invalid_lines": "correct them, or draw the other lines with --keep-going",
    "images_exist": "replace them with --force, or choose another folder with --out",
    "folder_busy": "wait until it ends, or choose another folder with --out",
}

#: celebctl.evaluation, celebctl.bench.
EVALUATION: dict[str, str] = {
    "evaluation_settings_differ": "choose another folder with -o, or replace it with --force",
    "prove_settings_differ": "choose another folder with -o, or begin again with --force",
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
    values = {name: shlex.quote(str(value)) for name, value in error.values.items()}
    if error.reason == "photograph_for_drawings":
        values["photograph_model"] = photograph_model_facts()
    try:
        return template.format(**values)
    except KeyError:
        return error.hint


#: Seconds of learning with sd15's size: on one CPU core, extrapolated from two steps, an upper bound; on an H100,
#: computed (benchmarks/results/true_size.json).
_CORE_SECONDS, _GPU_SECONDS = 40_000, 5
_MBIT = 100  # megabits per second of the download that is estimated


def photograph_model_facts() -> str:
    """Size, licence and time of learning with Stable Diffusion 1.5 and free face models on this machine."""
    import shutil

    from celebctl_models.checkpoints.known_models import KNOWN
    from celebctl_models.faces.packs import PACKS
    from celebctl_runtime.backends.cpu_count import physical_core_count

    model, pack = KNOWN["sd15"], PACKS["yunet_sface"]
    minutes = (model.size + pack.size) * 8 / (_MBIT * 1e6) / 60
    cores = physical_core_count()
    if shutil.which("nvidia-smi"):
        time = f"on a GPU learning takes seconds to minutes (computed for an H100: {_GPU_SECONDS} s)"
    else:
        hours = _CORE_SECONDS / cores / 3600
        time = f"on this machine's {cores} CPU cores, without a GPU, learning takes up to {hours:.0f} hours (estimated)"
    return (
        f"sd15: {model.size / 1e9:.1f} GB, {model.licence.name}; yunet_sface: {pack.size / 1e6:.0f} MB, {pack.terms};"
        f" downloading takes about {minutes:.0f} minutes at {_MBIT} Mbit/s; {time}; never tried with real weights"
    )
