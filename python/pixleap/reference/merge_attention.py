from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def merge_attention(
    outs: Sequence[np.ndarray], lses: Sequence[np.ndarray], *, return_lse: bool = False
) -> Any:
    """sum_i exp(lse_i - lse) out_i with lse = logsumexp_i lse_i; see
    `pixleap.ops.merge_attention`."""
    parts = np.stack([np.asarray(x, np.float64) for x in outs])
    logs = np.stack([np.asarray(x, np.float64) for x in lses])
    top = logs.max(axis=0)
    top = np.where(top == -np.inf, 0.0, top)
    weights = np.exp(logs - top)
    total = weights.sum(axis=0)
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    shares = (weights / np.where(total == 0, 1.0, total))[..., None]
    out = np.where(logs[..., None] == -np.inf, 0.0, shares * parts).sum(axis=0)
    return (out, lse) if return_lse else out
