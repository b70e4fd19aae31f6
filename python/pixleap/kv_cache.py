from __future__ import annotations

from . import ops
from ._arrays import Array, empty


class KVCache:
    """Keys and values of the tokens so far, in place for `pixleap.ops.attention`.

    Two (batch, heads, max_length, head_dim) buffers allocated once, in the framework and on the
    device of `like` (NumPy if None); `append` writes into them, nothing is moved again.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        head_dim: int,
        max_length: int,
        dtype: str = "float32",
        *,
        like: Array | None = None,
    ) -> None:
        for name, value in (
            ("batch", batch),
            ("heads", heads),
            ("head_dim", head_dim),
            ("max_length", max_length),
        ):
            if value < 0:
                raise ValueError(f"KVCache: argument '{name}' expected a size >= 0, got {value}")
        size = (batch, heads, max_length, head_dim)
        self._keys, self._values = empty(like, size, dtype), empty(like, size, dtype)
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    @property
    def max_length(self) -> int:
        """Tokens that fit."""
        return int(self._keys.shape[2])

    @property
    def keys(self) -> Array:
        """(B, H, length, D) view."""
        return self._keys[:, :, : self._length]

    @property
    def values(self) -> Array:
        """(B, H, length, D) view."""
        return self._values[:, :, : self._length]

    @property
    def buffers(self) -> tuple[Array, Array]:
        """Keys and values whole, (B, H, max_length, D) each, whatever `length` is: the slots that
        `pixleap.ops.kv_append_varlen` writes and `pixleap.ops.attention_varlen` reads. Who uses
        them keeps a length per slot; `length` stays as it is."""
        return self._keys, self._values

    def append(self, qkv: Array, q_scale: Array | None = None, out: Array | None = None) -> Array:
        """Takes keys and values from qkv (B, L, 3, H, D) and returns the queries (B, H, L, D); see
        `pixleap.ops.kv_append`. On an error, such as no more room, nothing changes."""
        q, _, _ = ops.kv_append(
            qkv, self._keys, self._values, self._length, q_scale=q_scale, out=out
        )
        self._length += qkv.shape[1]
        return q

    def rollback(self, length: int) -> None:
        """Forgets all tokens after the first `length`, as when drafted tokens are rejected."""
        if not 0 <= length <= self._length:
            raise ValueError(
                f"KVCache.rollback: argument 'length' expected 0 to {self._length}, got {length}"
            )
        self._length = length

    def reset(self) -> None:
        """Forgets all tokens; the memory stays."""
        self._length = 0
