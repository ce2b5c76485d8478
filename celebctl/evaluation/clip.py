"""CLIP score (Hessel et al. 2021): cosine of image and prompt embeddings, from a local folder of weights."""

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
    """A transformers folder with CLIPModel and tokenizer, for instance clip-vit-base-patch32. Downloads nothing.

    Raises:
        NotFoundError: The folder does not exist.
        IntegrityError: The folder cannot be loaded as a CLIP model.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no CLIP folder at {folder}", "pass the folder of a CLIP model, or none",
                reason="clip_missing", folder=folder,
            )  # fmt: skip
        from transformers import CLIPImageProcessor
        from transformers.models.clip.modeling_clip import CLIPModel
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        try:
            model = cast(Any, CLIPModel).from_pretrained(str(folder), local_files_only=True)
            self._tokenizer = cast(Any, CLIPTokenizer).from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises anything from OSError to KeyError for one broken file
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntegrityError(
                f"{folder} is not a CLIP model: {cause}", "pass another folder", reason="clip_invalid", folder=folder
            ) from error
        self._model = model.eval().requires_grad_(False)
        size = int(model.config.vision_config.image_size)
        self._preprocess: Any = cast(Any, CLIPImageProcessor)(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )

    @torch.no_grad()
    def score(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Cosine, -1 to 1, of each image (H, W, 3) with the text of the same index."""
        cosines: list[float] = []
        for start in range(0, len(images), _BATCH):
            pixels = self._preprocess(list(images[start : start + _BATCH]), return_tensors="pt").pixel_values
            tokens = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, max_length=77, return_tensors="pt"
            )
            out = self._model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            sides: Any = (torch.nn.functional.normalize(side, dim=-1) for side in (out.image_embeds, out.text_embeds))
            image, text = sides
            cosines += [float(value) for value in (image * text).sum(-1)]
        return cosines
