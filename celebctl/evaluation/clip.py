"""CLIP's opinion of how well a picture fits a sentence (Hessel et al. 2021), from weights that lie on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from celebctl_runtime.errors import IntegrityProblem, NotFound

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures (openai/CLIP, clip.py)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 16


class ClipJudge:
    """A transformers folder with CLIPModel and tokenizer, for instance clip-vit-base-patch32. Nothing is fetched.

    Raises NotFound without the folder, IntegrityProblem when it does not load.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFound(f"there is no folder at {folder}", "give the folder of a CLIP model, or leave --clip out")
        from transformers.models.clip.modeling_clip import CLIPModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        try:
            model = cast(Any, CLIPModel).from_pretrained(str(folder), local_files_only=True)
            self._tokenizer = cast(Any, CLIPTokenizer).from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises anything from OSError to KeyError for one broken file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntegrityProblem(f"{folder} holds no CLIP model: {reason}", "give another --clip folder") from error
        self._model = model.eval().requires_grad_(False)
        self._size = int(model.config.vision_config.image_size)

    @torch.no_grad()
    def agree(self, pictures: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Cosine of each picture (H, W, 3) with its text."""
        cosines: list[float] = []
        for start in range(0, len(pictures), _BATCH):
            pixels = torch.stack([self._pixels(picture) for picture in pictures[start : start + _BATCH]])
            words = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, max_length=77, return_tensors="pt"
            )
            out = self._model(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
            pair: Any = (torch.nn.functional.normalize(side, dim=-1) for side in (out.image_embeds, out.text_embeds))
            image, text = pair
            cosines += [float(value) for value in (image * text).sum(-1)]
        return cosines

    def _pixels(self, picture: NDArray[np.uint8]) -> torch.Tensor:
        """CLIP's own preparation: the shorter side to its size, the middle cut out, normalised, (3, S, S)."""
        image = Image.fromarray(picture)
        scale = self._size / min(image.size)
        width, height = (max(self._size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        square = image.crop((left, top, left + self._size, top + self._size))
        values = torch.as_tensor(np.asarray(square, np.float32).copy()).permute(2, 0, 1) / 255.0
        mean, std = (torch.tensor(row).view(3, 1, 1) for row in (_MEAN, _STD))
        return (values - mean) / std
