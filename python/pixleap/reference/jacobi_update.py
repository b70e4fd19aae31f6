from __future__ import annotations

import numpy as np


def jacobi_update(
    z: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    previous: np.ndarray,
    *,
    uncond_a: np.ndarray | None = None,
    uncond_b: np.ndarray | None = None,
    guidance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The affine inverse step of a flow; see `pixleap.ops.jacobi_update`."""
    if guidance is not None:
        strength = guidance[None, :, None]
        a = a + strength * (a - uncond_a) if uncond_a is not None else a
        b = b + strength * (b - uncond_b) if uncond_b is not None else b
    x = z * np.exp(a) + b
    finite = (np.isfinite(x) & np.isfinite(previous)).all(axis=-1)
    with np.errstate(invalid="ignore"):
        change = np.abs(x - previous).max(axis=-1, initial=0.0)
    return x, np.where(finite, change, np.inf)
