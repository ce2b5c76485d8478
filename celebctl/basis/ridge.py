"""Ridge regression from recogniser features to coefficients, for few and noisy examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ridge(
    features: NDArray[np.float32], targets: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Ridge regression with the penalty of each target chosen by leave-one-out error (closed form).

    features (n, p), targets (n, q) -> weight (q, p), bias (q,), median penalty. Components that a face does not
    determine get a large penalty and shrink to the mean, so noise in the token table does not enter identities.
    """
    x, y = features.astype(np.float64), targets.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    projected = u.T @ (y - y_mean)
    penalties = np.geomspace(1e-3, 1e3, 25) * float((s**2).mean())
    errors = np.empty((len(penalties), y.shape[1]))
    for row, penalty in enumerate(penalties):
        shrink = s**2 / (s**2 + penalty)
        leverage = (u**2 * shrink).sum(1) + 1.0 / len(x)
        residual = (y - y_mean - u @ (shrink[:, None] * projected)) / (1.0 - leverage)[:, None]
        errors[row] = (residual**2).mean(0)
    penalty = penalties[errors.argmin(0)]  # (q,)
    filters = s[:, None] / (s[:, None] ** 2 + penalty[None])
    weight = (vt.T @ (filters * projected)).T
    return weight.astype(np.float32), (y_mean - weight @ x_mean).astype(np.float32), float(np.median(penalty))
