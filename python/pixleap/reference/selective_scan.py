from __future__ import annotations

import numpy as np


def selective_scan(
    u: np.ndarray,
    delta: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    d: np.ndarray | None = None,
    *,
    z: np.ndarray | None = None,
    delta_bias: np.ndarray | None = None,
    delta_softplus: bool = False,
    state: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The selective state-space recurrence; see `pixleap.ops.selective_scan`."""
    batch, length, channels = u.shape
    dt = np.asarray(delta, np.float64)
    dt = dt if delta_bias is None else dt + delta_bias
    dt = np.logaddexp(0, dt) if delta_softplus else dt
    h = np.zeros((batch, channels, a.shape[1])) if state is None else state.astype(np.float64)
    y = np.zeros((batch, length, channels))
    for t in range(length):
        decay = np.exp(dt[:, t, :, None] * a)
        h = decay * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        y[:, t] = (h * c[:, t, None]).sum(-1)
    if d is not None:
        y = y + d * u
    if z is not None:
        y = y * z / (1 + np.exp(-z))
    return y, h
