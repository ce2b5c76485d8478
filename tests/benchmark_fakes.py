"""A random celeb basis for tests of benchmarks/."""

from __future__ import annotations

import numpy as np

from celebctl.basis.basis import CelebBasis

D, K = 32, 6


def random_basis(seed: int = 0) -> CelebBasis:
    rng = np.random.default_rng(seed)
    turns = [np.linalg.qr(rng.normal(size=(D, D)))[0][:K] for _ in range(2)]
    spread = np.sort(rng.uniform(0.1, 1.0, (2, K)), axis=1)[:, ::-1]
    mean = rng.normal(size=(2, D))
    arrays = (mean, np.stack(turns), spread)
    mean, components, spread = ((np.ascontiguousarray(a, np.float32),) for a in arrays)
    return CelebBasis(mean, components, spread, 40, "distinct")
