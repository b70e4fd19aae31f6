from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .philox import philox

MASK = 2**64 - 1


class _Position(NamedTuple):
    p_mean: np.ndarray
    p_std: np.ndarray
    q_mean: np.ndarray
    q_std: np.ndarray
    x: np.ndarray


def _uniforms(groups: np.ndarray, key: int, offset: int) -> np.ndarray:
    """(len(groups), 2) numbers in (0, 1)."""
    words = philox(groups, key, offset).astype(np.uint64)
    bits = (words[:, ::2] << np.uint64(32)) | words[:, 1::2]
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _normals(u: np.ndarray) -> np.ndarray:
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1)


def _residual(at: _Position, key: int, position: int) -> np.ndarray:
    """A draw from (p - q)+ by rejection."""
    channels = len(at.x)
    moves = at.p_std > 0
    scale = np.divide(at.p_std, at.q_std, out=np.ones(channels), where=moves)
    shift = np.divide(at.p_mean - at.q_mean, at.q_std, out=np.zeros(channels), where=moves)
    k, b, a = 0.5 * shift**2 - np.log(scale), scale * shift, 0.5 * (scale**2 - 1)
    constant = max(0.0, float((k + 0.5 * np.abs(b)).sum()))
    slopes = np.maximum(a + 0.5 * np.abs(b), 0)
    mass = constant + slopes.sum()
    slots = 2 + (channels + 1) // 2
    t = 0
    while True:
        u = _uniforms(t * slots + np.arange(slots), key, position)
        t += 1
        z, more = _normals(u[2:])[:channels], _normals(u[1:2])
        envelope = 1.0
        if mass < 1:
            passed = np.searchsorted(np.cumsum(slopes), u[0, 1] * mass - constant, side="right")
            if u[0, 1] * mass >= constant:  # the channel that is weighted by z^2
                z[passed] = np.copysign(np.sqrt(z[passed] ** 2 + (more**2).sum()), z[passed])
            envelope = constant + float((slopes * z**2).sum())
        if u[0, 0] * envelope < -np.expm1(-float((k + b * z + a * z**2).sum())):
            return at.p_mean + at.p_std * z


def _accept(at: _Position, seed: int, offset: int, position: int) -> tuple[np.ndarray, bool]:
    words = philox(np.array([position & MASK], np.uint64), seed, offset)[0]
    key = (int(words[2]) << 32) | int(words[3])
    u = _uniforms(np.array([position & MASK], np.uint64), seed, offset)[0, 0]
    p_flat, q_flat = at.p_std == 0, at.q_std == 0
    lost = q_flat & ((at.p_mean != at.q_mean) | (at.x != at.q_mean))
    if (p_flat != q_flat).any() or lost.any():
        channels = len(at.x)
        draws = _normals(_uniforms(2 + np.arange((channels + 1) // 2), key, position))
        return at.p_mean + at.p_std * draws[:channels], False
    moving = ~p_flat
    p_std, q_std = at.p_std[moving], at.q_std[moving]
    z = (at.x - at.q_mean)[moving] / q_std
    w = (at.x - at.p_mean)[moving] / p_std
    equal = bool((at.p_std == at.q_std).all())
    shift = (at.q_mean - at.p_mean)[moving] / p_std
    if equal:
        log_ratio = -float(z @ shift) - 0.5 * float(shift @ shift)
    else:
        log_ratio = float((0.5 * (z**2 - w**2) + np.log(q_std / p_std)).sum())
    if np.log(u) < log_ratio:
        return at.x, True
    if not equal:
        return _residual(at, key, position), False
    mirrored = at.p_mean.copy()
    mirrored[moving] += p_std * (z - 2 * (z @ shift) / (shift @ shift) * shift)
    return mirrored, False


def gaussian_accept(
    target_mean: np.ndarray,
    target_std: np.ndarray,
    draft_mean: np.ndarray,
    draft_std: np.ndarray,
    x: np.ndarray,
    *,
    seed: int,
    offset: int = 0,
    first_sample: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact verification of drafted continuous tokens; see `pixleap.ops.gaussian_accept`."""
    same_shape = np.broadcast_arrays(target_mean, target_std, draft_mean, draft_std, x)
    arrays = [np.asarray(a, np.float64) for a in same_shape]
    if (
        not all(np.isfinite(a).all() for a in arrays)
        or min(a.min(initial=0) for a in arrays[1:4:2]) < 0
    ):
        raise ValueError("gaussian_accept: expected finite numbers and deviations >= 0")
    batch, length, _ = x.shape
    out, accepted = np.empty(x.shape), np.empty((batch, length), bool)
    for b, l in np.ndindex(batch, length):  # noqa: E741
        at = _Position(*(a[b, l] for a in arrays))
        out[b, l], accepted[b, l] = _accept(at, seed, offset, (first_sample + b) * length + l)
    return out, accepted
