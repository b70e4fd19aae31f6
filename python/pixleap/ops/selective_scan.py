from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def selective_scan(
    u: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array | None = None,
    *,
    z: Array | None = None,
    delta_bias: Array | None = None,
    delta_softplus: bool = False,
    state: Array | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """The selective state-space recurrence of Mamba, from a given state to the final one.

    With dt = delta + delta_bias, or log(1 + exp(delta + delta_bias)), per channel e:

        h_t = exp(dt_t a[e]) h_(t-1) + dt_t u_t b_t        (N numbers, h_0 = state)
        y_t = sum(c_t h_t) + d u_t, times silu(z_t)

    A sequence that is scanned in parts, each from the state that the one before it returned, gives
    the bits of one scan.

    Args:
        u, delta: (B, L, E) float32, bfloat16 or float16; stride 1 along E, else any.
        a: (E, N) float32, stride 1 along N, at most 256 states; negative for a decay.
        b, c: (B, L, N) of u's dtype, stride 1 along N.
        d, delta_bias: (E,) float32.
        z: (B, L, E) of u's dtype, stride 1 along E: the gate.
        delta_softplus: whether dt is the softplus.
        state: (B, E, N) float32, stride 1 along N; None for zeros.
        out: (y, final state); y may be u, delta or z itself, the final state `state` itself.

    Returns:
        y (B, L, E) of u's dtype and the final state (B, E, N) float32. Sums are float32.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Source: Gu and Dao 2023 (Mamba, arXiv:2312.00752); the scales of an image as one sequence, as
    M-VAR scans them (arXiv:2411.10433).
    """
    if out is None:
        size = shape(u, "selective_scan", "u", 3)
        states = shape(a, "selective_scan", "a", 2)[1]
        out = empty(u, size), empty(u, (size[0], size[2], states), "float32")
    y, final_state = out
    _native.selective_scan(
        y, final_state, u, delta, a, b, c, d, z, delta_bias, delta_softplus, state
    )
    return y, final_state
