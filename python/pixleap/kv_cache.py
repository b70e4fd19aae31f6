from __future__ import annotations

from typing import Any

import numpy as np

from . import masks, ops
from ._arrays import Array, empty, empty_large, is_torch, shape


class KVCache:
    """Keys and values of the tokens so far, in place for `pixleap.ops.attention`.

    Two (batch, heads, max_length, head_dim) buffers allocated once, in the framework and on the
    device of `like` (NumPy if None); `append` writes into them, and nothing is moved but by
    `compact`. The capacity is fixed: what does not fit is an error and changes nothing.

    Args:
        batch, heads, head_dim, max_length: sizes of the buffers.
        dtype: "float32", "bfloat16" or "float16" as what is appended, or "int8": keys and values
            rounded to 255 steps per token and head, whose (batch, heads, max_length) float32 scales
            are kept beside them (see `pixleap.ops.kv_append`). A quarter of float32's memory; an
            error of at most max|x| / 254 in each number of a row x.
        like: an array.

    Samples have one length until `rollback` takes them to different ones; they then grow each from
    its own.

    Raises:
        ValueError: a negative size.
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
        self._whole: tuple[Array, ...] = tuple(empty_large(like, size, dtype) for _ in range(2))
        if dtype == "int8":
            self._whole += tuple(empty(like, size[:3], "float32") for _ in range(2))
        self._held = self._whole  # of the samples that are left
        self._length = 0
        self._lengths: np.ndarray | None = None  # where samples differ

    @property
    def batch(self) -> int:
        """Samples held: all that there is room for, until `compact` drops some."""
        return int(self._held[0].shape[0])

    @property
    def length(self) -> int:
        """Tokens held, by the longest sample if they differ."""
        return self._length

    @property
    def lengths(self) -> np.ndarray:
        """Tokens held by each sample, (batch,) int64."""
        if self._lengths is None:
            return np.full(self.batch, self._length, np.int64)
        return self._lengths.copy()

    @property
    def max_length(self) -> int:
        """Tokens that fit."""
        return int(self._whole[0].shape[2])

    @property
    def keys(self) -> Array:
        """(B, H, length, D) view; of a shorter sample the rest means nothing."""
        return self._held[0][:, :, : self._length]

    @property
    def values(self) -> Array:
        """(B, H, length, D) view; of a shorter sample the rest means nothing."""
        return self._held[1][:, :, : self._length]

    @property
    def scales(self) -> dict[str, Any]:
        """k_scale and v_scale, (B, H, length) views, of an int8 cache, as `pixleap.ops.attention`
        takes them; else nothing."""
        views = (s[:, :, : self._length] for s in self._held[2:])
        return dict(zip(("k_scale", "v_scale"), views, strict=False))

    @property
    def buffers(self) -> tuple[Array, Array]:
        """Keys and values whole, (B, H, max_length, D) each, whatever `length` is: the slots that
        `pixleap.ops.kv_append_varlen` writes and `pixleap.ops.attention_varlen` reads. Who uses
        them keeps a length per slot; `length` stays as it is."""
        return self._whole[0], self._whole[1]

    def append(
        self, qkv: Array, q_scale: Array | None = None, out: Array | None = None, **options: Any
    ) -> Array:
        """Takes keys and values from qkv (B, L, 3, H, D) and returns the queries (B, H, L, D). Each
        sample's go to its own length, which is also where its rows of `rope` begin.

        options: norm, q_weight, k_weight, eps, rope, rope_positions, rope_interleaved; see
        `pixleap.ops.kv_append`. On an error, such as no more room, nothing changes."""
        options["q_scale"] = q_scale
        if self._lengths is None:
            options.update(self._scales(self._held))
            q = ops.kv_append(qkv, self._held[0], self._held[1], self._length, out=out, **options)[
                0
            ]
        else:
            q = self._append_ragged(qkv, self._lengths, options)
            if out is not None:
                _check_shape("append", out, tuple(q.shape))
                out[...] = q
                q = out
            self._lengths = self._lengths + qkv.shape[1]
        self._length += qkv.shape[1]
        return q

    def attend(
        self,
        q: Array,
        mask: Any = None,
        scale: float | None = None,
        out: Array | None = None,
    ) -> Array:
        """Attention of q (B, H, L, D) over all that is held, (B, H, L, D); arguments as in
        `pixleap.ops.attention`. Where samples have different lengths each sees its own, and `mask`
        is None or `pixleap.masks.causal()`: a sample's last query then sees all of its keys.

        Raises:
            ValueError, TypeError: as `pixleap.ops.attention`; another mask for samples of different
                lengths.
        """
        if self._lengths is None:
            return ops.attention(
                q, self.keys, self.values, mask=mask, scale=scale, out=out, **self.scales
            )
        if not (mask is None or isinstance(mask, masks.causal)):
            raise ValueError(
                "KVCache.attend: argument 'mask' expected None or causal() where samples have "
                f"different lengths, got {type(mask).__name__}"
            )
        size = shape(q, "KVCache.attend", "q", 4)
        _check_batch("attend", "q", size[0], self.batch)
        rows = _rows(q)
        result = ops.attention_varlen(
            rows, self._held[0], self._held[1], self._offsets(size[2]), self._lengths,
            causal=mask is not None, scale=scale, out=empty(q, rows.shape),
            **self._scales(self._held),
        )  # fmt: skip
        result = result.reshape(size[0], size[2], size[1], size[3]).swapaxes(1, 2)
        if out is None:
            return result
        _check_shape("attend", out, size)
        out[...] = result
        return out

    def step(
        self,
        qkv: Array,
        q_scale: Array | None = None,
        *,
        mask: Any = None,
        scale: float | None = None,
        out: Array | None = None,
        **options: Any,
    ) -> Array:
        """`append` and `attend` in one: an attention layer between its two projections.

        Args:
            qkv: (B, L, 3, H, D).
            q_scale, options: as in `append`.
            mask, scale: as in `attend`.
            out: (B, L, H * D) of qkv's dtype, to write; the queries are made in it.

        Returns:
            (B, L, H * D).

        Raises:
            ValueError, TypeError: as `append` and `attend`. The cache holds what it held then.
        """
        batch, count, _, heads, dim = shape(qkv, "KVCache.step", "qkv", 5)
        if out is None:
            out = empty(qkv, (batch, count, heads * dim))
        _check_shape("step", out, (batch, count, heads * dim))
        q = out.reshape(batch, count, heads, dim).swapaxes(1, 2)  # a view: one axis is split
        before = self._length, self._lengths
        try:
            self.attend(self.append(qkv, q_scale, q, **options), mask, scale, q)
        except BaseException:
            self._length, self._lengths = before
            raise
        return out

    def rollback(self, length: Any) -> None:
        """Forgets all tokens after the first `length`, as when drafted tokens are rejected.

        length: for all samples, or (batch,) integers on the host, for each.

        Raises ValueError or TypeError for a length that is negative or more than a sample holds."""
        if self._lengths is None and isinstance(length, int):
            if not 0 <= length <= self._length:
                raise ValueError(
                    f"KVCache.rollback: argument 'length' expected 0 to {self._length}, got "
                    f"{length}"
                )
            self._length = length
            return
        held, given = self.lengths, np.asarray(length)
        if given.dtype.kind not in "iu":
            raise TypeError(
                f"KVCache.rollback: argument 'length' expected integers, got {given.dtype}"
            )
        if given.shape not in ((), held.shape):
            raise ValueError(
                f"KVCache.rollback: argument 'length' expected one or {len(held)} integers, got "
                f"shape {given.shape}"
            )
        wanted = np.broadcast_to(given, held.shape)
        for i in np.flatnonzero((wanted < 0) | (wanted > held))[:1]:
            raise ValueError(
                f"KVCache.rollback: argument 'length' expected 0 to {held[i]}, got {wanted[i]} for "
                f"sample {i}"
            )
        self._set_lengths(wanted.astype(np.int64))

    def advance_to(self, length: int) -> None:
        """Counts `length` tokens as held by every sample, without writing any: what follows a
        replayed CUDA graph, which appends as it did when it was captured, unseen by Python.

        Raises ValueError for a length that the cache has no room for."""
        if not 0 <= length <= self.max_length:
            raise ValueError(
                f"KVCache.advance_to: argument 'length' expected 0 to {self.max_length}, got "
                f"{length}"
            )
        self._length, self._lengths = length, None

    def compact(self, keep: Any) -> np.ndarray:
        """Drops samples, as those that are finished. The survivors among the first `batch` stay
        where they are; those behind move into the gaps, each copied once.

        Args:
            keep: (batch,) bool: who survives; or the survivors' integers, in any order.

        Returns:
            (new batch,) int64: new sample i was sample order[i]. Whoever keeps other things per
            sample reorders them by it.

        Raises:
            ValueError: keep of another shape, or samples that are not held or named twice.
        """
        held = self.batch
        given = np.asarray(keep)
        if given.dtype == bool and given.shape == (held,):
            given = np.flatnonzero(given)
        elif given.size == 0 and given.ndim == 1 and given.dtype != bool:
            given = given.astype(np.int64)
        good = given.ndim == 1 and given.dtype.kind in "iu"
        survivors = np.unique(given) if good else given
        if not good or len(survivors) != len(given) or ((given < 0) | (given >= held)).any():
            raise ValueError(
                f"KVCache.compact: argument 'keep' expected ({held},) of bool, or different "
                f"integers from 0 to {held - 1}, got {keep!r}"
            )
        lengths, count = self.lengths, len(survivors)
        order = np.arange(count, dtype=np.int64)
        order[np.setdiff1d(order, survivors)] = survivors[survivors >= count]
        for to, sample in enumerate(order):
            if to != sample:
                for buffer in self._held:
                    buffer[to, :, : lengths[sample]] = buffer[sample, :, : lengths[sample]]
        self._held = tuple(x[:count] for x in self._whole)
        self._set_lengths(lengths[order])
        return order

    def reset(self) -> None:
        """Forgets all tokens, and samples that were dropped are back; the memory stays."""
        self._held = self._whole
        self._length, self._lengths = 0, None

    def _set_lengths(self, lengths: np.ndarray) -> None:
        self._length = int(lengths.max(initial=0))
        self._lengths = lengths if (lengths != self._length).any() else None

    def _offsets(self, count: int) -> np.ndarray:
        return np.arange(self.batch + 1, dtype=np.int64) * count

    @staticmethod
    def _scales(arrays: tuple[Array, ...]) -> dict[str, Any]:
        return dict(zip(("k_scale", "v_scale"), arrays[2:], strict=False))

    def _append_ragged(self, qkv: Array, lengths: np.ndarray, options: dict[str, Any]) -> Array:
        batch, count, three, heads, dim = shape(qkv, "KVCache.append", "qkv", 5)
        _check_batch("append", "qkv", batch, self.batch)
        tables, at = options.get("rope"), options.get("rope_positions")
        if tables is not None:  # of samples and tokens: now of rows
            options["rope"] = tuple(
                t if t.ndim == 2 else _spread(t, (batch, *t.shape[1:])).reshape(1, -1, t.shape[2])
                for t in tables
            )
        if at is not None:
            options["rope_positions"] = _spread(at, (batch, count)).reshape(-1)
        rows = qkv.reshape(batch * count, three, heads, dim)
        q = ops.kv_append_varlen(
            rows, self._held[0], self._held[1], self._offsets(count), lengths,
            **self._scales(self._held), **options,
        )[0]  # fmt: skip
        return q.reshape(batch, count, heads, dim).swapaxes(1, 2)


def _rows(x: Array) -> Array:
    """(B, H, L, D) as (B * L, H, D): a view if the memory is in that order."""
    batch, heads, length, dim = x.shape
    return x.swapaxes(1, 2).reshape(batch * length, heads, dim)


def _spread(x: Array, size: tuple[int, ...]) -> Array:
    return x.expand(size) if is_torch(x) else np.broadcast_to(x, size)


def _check_shape(method: str, out: Array, expected: tuple[int, ...]) -> None:
    got = shape(out, f"KVCache.{method}", "out")
    if got != expected:
        raise ValueError(f"KVCache.{method}: argument 'out' expected shape {expected}, got {got}")


def _check_batch(method: str, name: str, got: int, held: int) -> None:
    if got != held:
        raise ValueError(
            f"KVCache.{method}: argument '{name}' expected {held} samples, as are held, got {got}"
        )
