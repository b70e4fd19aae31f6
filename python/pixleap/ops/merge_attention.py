from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _native
from .._arrays import Array, empty, shape


def merge_attention(
    outs: Sequence[Array],
    lses: Sequence[Array],
    *,
    out: Any = None,
    return_lse: bool = False,
) -> Any:
    """Attention over the union of disjoint sets of keys, from the results over each of them.

    lse = logsumexp_i lses[i];  out = sum_i exp(lses[i] - lse) outs[i]

    Args:
        outs: 1 to 16 arrays (B, H, L, D), float32, bfloat16 or float16, as
            `pixleap.ops.attention(..., return_lse=True)` gives them for the same queries. Any
            strides with a last one of 1, also 0 (expanded arrays).
        lses: as many (B, H, L) float32 arrays, any strides: the log-sum-exp of the scores. A part
            whose log-sum-exp is -inf saw no key: it counts for nothing, and its row of `outs` is
            not read, whatever stands there.
        out: (B, H, L, D) float32, bfloat16 or float16, to write; by default of the parts' dtype.
            May be one of `outs`. With return_lse a pair, the second (B, H, L) and float32, which
            may be one of `lses`.
        return_lse: also return the log-sum-exp over all keys, so that merging can go on.

    Returns:
        (B, H, L, D), or a pair with the (B, H, L) float32 log-sum-exp. A query that saw no key in
        any part gets zeros and -inf. A NaN in `lses` makes its row NaN.

    Raises:
        ValueError, TypeError: other than 1 to 16 parts, or shapes, dtypes, strides or devices that
            do not fit.

    Sums are in float32 and rounded once. The rule is that of split-KV decoding (Dao et al.,
    Flash-Decoding, 2023) and cascade attention (Ye et al., FlashInfer, arXiv:2501.01005).
    """
    if not isinstance(outs, (list, tuple)):
        raise TypeError(
            f"merge_attention: argument 'outs' expected a list of arrays, got {type(outs).__name__}"
        )
    if not outs:
        raise ValueError("merge_attention: argument 'outs' expected 1 to 16 arrays, got 0")
    if return_lse or out is None:
        size = shape(outs[0], "merge_attention", "outs", 4)
    if return_lse:
        results = out or (empty(outs[0], size), empty(outs[0], size[:3], "float32"))
    else:
        results = (empty(outs[0], size) if out is None else out,)
    _native.merge_attention(results, outs, lses)
    return tuple(results) if return_lse else results[0]
