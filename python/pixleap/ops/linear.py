from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def linear(
    x: Array,
    packed: Array,
    out_features: int,
    *,
    scales: Array | None = None,
    bias: Array | None = None,
    activation: str = "none",
    gate: Array | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """A linear layer with its epilogue: residual + gate[b] * activation(x W^T + bias).

    Args:
        x: (B, L, K) float32, bfloat16 or float16, unit last stride.
        packed: W (out_features, K) as `linear_pack` lays it out.
        out_features: N.
        scales: (N,) float32, contiguous: the second array that `linear_pack` returns for int8, and
            given with int8 weights only; W[n, k] = scales[n] * packed integer.
        bias: (N,), float32 or x's dtype.
        activation: "none", "gelu" (erf), "gelu_tanh" or "silu".
        gate: (B, N), float32 or x's dtype.
        residual: (B, L, N) of `out`'s dtype; may be `out` itself.
        out: (B, L, N) float32, bfloat16 or float16 to write, unit last stride; by default of x's
            dtype.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown activation,
            int8 weights without scales, scales with others.

    Sums are kept in float32, in the order of K: the result has the same bits for any number of
    threads and of rows in the call. Sums over int8 weights are of integers times x, which stays as
    it is; the scale follows. With bfloat16 or int8 weights on a machine with AMX, x is rounded to
    bfloat16.
    """
    if out is None:
        batch, length, _ = shape(x, "linear", "x", 3)
        out = empty(x, (batch, length, max(out_features, 0)))  # the native call refuses negatives
    _native.linear(out, x, packed, out_features, scales, bias, activation, gate, residual)
    return out
