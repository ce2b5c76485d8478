"""CLIP's opinion of how well a picture fits a sentence (Hessel et al. 2021), from weights that lie on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from celebctl_runtime.errors import IntegrityError, NotFoundError

_BATCH = 16


class ClipScorer:
    """A transformers folder with CLIPModel and tokenizer, for instance clip-vit-base-patch32. Nothing is fetched.

    Raises NotFoundError without the folder, IntegrityError when it does not load.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFoundError(f"there is no folder at {folder}", "give the folder of a CLIP model, or leave --clip out")
        from transformers import CLIPImageProcessor
        from transformers.models.clip.modeling_clip import CLIPModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        try:
            model = cast(Any, CLIPModel).from_pretrained(str(folder), local_files_only=True)
            self._tokenizer = cast(Any, CLIPTokenizer).from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the library raises anything from OSError to KeyError for one broken file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntegrityError(f"{folder} holds no CLIP model: {reason}", "give another --clip folder") from error
        self._model = model.eval().requires_grad_(False)
        size = int(model.config.vision_config.image_size)
        self._prepare: Any = cast(Any, CLIPImageProcessor)(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )

    @torch.no_grad()
    def agree(self, pictures: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Cosine of each picture (H, W, 3) with its text."""
        cosines: list[float] = []
        for start in range(0, len(pictures), _BATCH):
            pixels = self._prepare(list(pictures[start : start + _BATCH]), return_tensors="pt").pixel_values
            words = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, max_length=77, return_tensors="pt"
            )
            out = self._model(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
            pair: Any = (torch.nn.functional.normalize(side, dim=-1) for side in (out.image_embeds, out.text_embeds))
            image, text = pair
            cosines += [float(value) for value in (image * text).sum(-1)]
        return cosines
