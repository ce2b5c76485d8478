"""The fictional celebrities of mini's world: 691 two-word names and what they look like.

Names are put together from syllables of ours, so that no real person is meant; the count is the paper's (section 3.2).
Every first and every last name carries a vector of its own, so that namesakes share features as families and fashions
do. At least 513 distinct words stand in each position: the celeb basis needs them to have 512 real components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .people import FACTORS, blend_names

CELEBRITIES = 691
FIRST_NAMES, LAST_NAMES = 590, 600
WORLD_SEED = 20231

FIRST_HEAD = (
    "al bel cor dar el fen gal hal iv jor kal lin mar nor ol per quin ros sel tam ul ver wil xan yor zel "
    "bri cla dri gwen"
).split()
FIRST_TAIL = "ada ana aro ari as ela en ena eo er ia ian ida iel ino io is ita on ora os ula us ette".split()
LAST_HEAD = (
    "ash blan bram cald dun elm farn glen hart ink kest lark mill nim oak pend quill rav stan thorn umber vell wex "
    "yar zim brook crane drake finch grim holt lund"
).split()
LAST_TAIL = (
    "by combe dale den er ett field ford gate ham hurst ins ley man mere more over ridge son stead ton well wick worth"
).split()


@dataclass(frozen=True)
class NameBook:
    """Who is called what.

    first_names, last_names: the words; first_z, last_z: (N, F) what each carries; pairs: (691, 2) indices of both;
    own_z: (691, F).
    """

    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    first_z: NDArray[np.float32]
    last_z: NDArray[np.float32]
    pairs: NDArray[np.int64]
    own_z: NDArray[np.float32]

    def full_name(self, index: int) -> str:
        """First and last name of celebrity ``index``."""
        first, last = self.pairs[index]
        return f"{self.first_names[first]} {self.last_names[last]}"

    @property
    def names(self) -> list[str]:
        """Full names of all celebrities."""
        return [self.full_name(i) for i in range(len(self.pairs))]

    def celebrities(self) -> NDArray[np.float32]:
        """``z`` of all celebrities, (691, F)."""
        return blend_names(self.first_z[self.pairs[:, 0]], self.last_z[self.pairs[:, 1]], self.own_z)

    def ordinary(self, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
        """``z`` of people who merely have these (first, last) names, (N, F)."""
        return blend_names(self.first_z[pairs[:, 0]], self.last_z[pairs[:, 1]])


def _words(heads: Sequence[str], tails: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    every = sorted({head + tail for head in heads for tail in tails})
    picked: list[int] = rng.permutation(len(every))[:count].tolist()
    return tuple(every[i] for i in sorted(picked))


def name_book(seed: int = WORLD_SEED, factors: int = len(FACTORS)) -> NameBook:
    """The same book for the same seed and number of factors, on every machine; the names depend on the seed alone."""
    rng = np.random.Generator(np.random.PCG64(seed))
    first = _words(FIRST_HEAD, FIRST_TAIL, FIRST_NAMES, rng)
    last = _words(LAST_HEAD, LAST_TAIL, LAST_NAMES, rng)

    def column(words: int) -> NDArray[np.int64]:  # every word at least once, some twice
        return np.concatenate([rng.permutation(words), rng.permutation(words)])[:CELEBRITIES]

    pairs = np.stack([column(FIRST_NAMES), rng.permutation(column(LAST_NAMES))], 1)
    return NameBook(
        first, last,
        rng.standard_normal((FIRST_NAMES, factors)).astype(np.float32),
        rng.standard_normal((LAST_NAMES, factors)).astype(np.float32),
        pairs,
        rng.standard_normal((CELEBRITIES, factors)).astype(np.float32),
    )  # fmt: skip
