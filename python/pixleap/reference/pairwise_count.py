from __future__ import annotations

import numpy as np

from ._distances import squared_distances


def pairwise_count(
    x: np.ndarray, y: np.ndarray, x_radii: np.ndarray, y_radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points inside balls around points; see `pixleap.ops.pairwise_count`."""
    distances = squared_distances(x, y)
    in_x = distances < np.asarray(x_radii)[:, None]  # y_j lies in the ball of x_i
    in_y = distances < np.asarray(y_radii)[None, :]  # x_i lies in the ball of y_j
    return (
        np.stack([in_x.sum(axis=1), in_y.sum(axis=1)], axis=1),
        np.stack([in_y.sum(axis=0), in_x.sum(axis=0)], axis=1),
    )
