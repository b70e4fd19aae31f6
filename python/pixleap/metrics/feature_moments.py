from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from ._features import to_numpy

_FORMAT = 1


class FeatureMoments:
    """Mean and covariance of features that come in chunks, as FID needs them.

    Totals are 128-bit integers (`pixleap.ops.feature_moments`), so they do not depend on the order
    of chunks, or on how chunks are spread over objects and processes: merged states give the same
    bits as one that saw every chunk. While there are fewer rows than features, the rows themselves
    are kept (`low_rank`). The state takes at most d^2 float64 numbers.

    Args:
        d: number of features.
    """

    def __init__(self, d: int) -> None:
        if not isinstance(d, (int, np.integer)) or d < 1:
            raise ValueError(f"FeatureMoments: argument 'd' expected a positive integer, got {d!r}")
        self.d = int(d)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.count = 0
        self._chunks: list[np.ndarray] | None = []
        self._second = np.zeros((0, 2), np.int64)
        self._first = np.zeros((0, 2), np.int64)

    def update(self, features: Any) -> FeatureMoments:
        """Adds a chunk of rows; returns self.

        Args:
            features: (N, d) float16, bfloat16, float32 or float64; NumPy, torch (copied to the
                CPU) or DLPack.

        Raises:
            ValueError: another shape, NaN or infinity (the row is named), squares beyond 2^52; the
                state is unchanged then.
            TypeError: not floating point.
        """
        x = _rows(features, self.d)
        if self._chunks is not None:
            bad = ~np.isfinite(x).all(axis=1)
            if bad.any():
                raise ValueError(
                    "FeatureMoments.update: argument 'features' expected finite values, got NaN or "
                    f"infinity in row {int(bad.argmax())}"
                )
            if self.count + len(x) <= self.d:
                self._chunks.append(x.copy())
                self.count += len(x)
                return self
            self._fold()
        _add(x, self._second, self._first)
        self.count += len(x)
        return self

    @property
    def mean(self) -> np.ndarray:
        """(d,) float64."""
        return self.statistics()[0]

    @property
    def covariance(self) -> np.ndarray:
        """(d, d) float64, divisor count - 1."""
        return self.statistics()[1]

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d), float64.

        Raises:
            ValueError: fewer than 2 rows.
        """
        if self.count < 2:
            raise ValueError(
                f"FeatureMoments: a covariance needs at least 2 rows, got {self.count}"
            )
        return ops.feature_covariance(*self._totals(), self.count)

    def low_rank(self) -> np.ndarray | None:
        """The rows, (count, d) float64, while there are no more than d of them; else None."""
        if self._chunks is None:
            return None
        chunks = [c.astype(np.float64) for c in self._chunks]
        return np.concatenate([np.zeros((0, self.d)), *chunks])

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Adds what `other` has seen, which stays as it is; returns self."""
        if not isinstance(other, FeatureMoments) or other.d != self.d:
            got = f"d={other.d}" if isinstance(other, FeatureMoments) else type(other).__name__
            raise ValueError(
                f"FeatureMoments.merge: argument 'other' expected FeatureMoments of d={self.d}, "
                f"got {got}"
            )
        together = self.count + other.count
        if self._chunks is not None and other._chunks is not None and together <= self.d:
            self._chunks.extend(other._chunks)
            self.count = together
            return self
        second, first = other._totals()
        self._fold()
        _add_integers(self._second, second)
        _add_integers(self._first, first)
        self.count = together
        return self

    def all_reduce(self, group: Any = None) -> FeatureMoments:
        """Merges the states of all processes of a torch.distributed group; returns self.

        Every process ends with the state of all of them, with the same bits for any number of
        processes that the same chunks were spread over.
        """
        import torch
        from torch import distributed

        nccl = distributed.get_backend(group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        count = torch.tensor([self.count], device=device)
        distributed.all_reduce(count, group=group)
        total = int(count)
        if total <= self.d:
            everyone: list[Any] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(everyone, self._chunks, group=group)
            self._chunks = [chunk for chunks in everyone for chunk in chunks]
        else:
            self._fold()
            for totals in (self._second, self._first):
                limbs = totals.view(np.uint32).reshape(-1, 4)
                sums = []
                for k in range(4):
                    # Unsigned 32-bit parts leave room for the sums of 2^31 processes.
                    limb = torch.from_numpy(limbs[:, k].astype(np.int64)).to(device)
                    distributed.all_reduce(limb, group=group)
                    sums.append(limb.cpu().numpy())
                carry = np.zeros(len(limbs), np.int64)
                for k in range(4):
                    carry += sums[k]
                    limbs[:, k] = (carry & 0xFFFFFFFF).astype(np.uint32)
                    carry >>= 32
        self.count = total
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an npz with `mu`, `sigma` as pytorch-fid reads them, and the exact state. The file
        appears whole or not at all."""
        state: dict[str, Any] = {"format": np.array(_FORMAT), "count": np.array(self.count)}
        if self.count >= 2:
            state["mu"], state["sigma"] = self.statistics()
        if self._chunks is not None:
            state["chunks"] = np.array(len(self._chunks))
            state |= {f"chunk{i}": chunk for i, chunk in enumerate(self._chunks)}
        else:
            state |= {"second": self._second, "first": self._first}
        state["d"] = np.array(self.d)
        buffer = io.BytesIO()
        np.savez(buffer, **state)
        target = Path(path)
        partial = target.with_name(target.name + f".{os.getpid()}.partial")
        try:
            partial.write_bytes(buffer.getbuffer())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureMoments:
        """What `save` wrote; updating and merging go on exactly.

        Raises:
            ValueError: not such a file (for `mu`, `sigma` of other programs there is
                `load_statistics`).
            OSError: it cannot be read.
        """
        with _open(path) as file:
            if "format" not in file or int(file["format"]) != _FORMAT:
                raise ValueError(f"{os.fspath(path)}: no state of FeatureMoments")
            try:
                moments = cls(int(file["d"]))
                moments.count = int(file["count"])
                if "second" in file:
                    moments._chunks = None
                    moments._second, moments._first = file["second"], file["first"]
                    d, got = moments.d, (moments._second, moments._first)
                    for totals, length in zip(got, (d * (d + 1) // 2, d), strict=True):
                        if totals.dtype != np.int64 or totals.shape != (length, 2):
                            raise ValueError("totals of another shape")
                else:
                    chunks = [file[f"chunk{i}"] for i in range(int(file["chunks"]))]
                    moments._chunks = [_rows(chunk, moments.d) for chunk in chunks]
                    if sum(map(len, chunks)) != moments.count:
                        raise ValueError("rows are missing")
            except _DAMAGE as error:
                raise ValueError(f"{os.fspath(path)}: damaged state ({error})") from None
        return moments

    def _totals(self) -> tuple[np.ndarray, np.ndarray]:
        if self._chunks is None:
            return self._second, self._first
        second = np.zeros((self.d * (self.d + 1) // 2, 2), np.int64)
        first = np.zeros((self.d, 2), np.int64)
        for chunk in self._chunks:
            _add(chunk, second, first)
        return second, first

    def _fold(self) -> None:
        self._second, self._first = self._totals()
        self._chunks = None


_DAMAGE = (KeyError, ValueError, TypeError, zipfile.BadZipFile, EOFError)


def _add(x: np.ndarray, second: np.ndarray, first: np.ndarray) -> None:
    try:
        ops.feature_moments(x, second, first)
    except ValueError as error:
        raise ValueError(str(error).replace("feature_moments:", "FeatureMoments.update:")) from None


def _add_integers(total: np.ndarray, other: np.ndarray) -> None:
    """128-bit sums of (low, high) halves, in place."""
    low, high = total[:, 0].view(np.uint64), total[:, 1]
    low += other[:, 0].view(np.uint64)
    high += other[:, 1]
    high += low < other[:, 0].view(np.uint64)


def _rows(features: Any, d: int) -> np.ndarray:
    x = to_numpy("FeatureMoments.update", "features", features)
    if x.dtype.kind != "f" or x.dtype.itemsize not in (2, 4, 8):
        raise TypeError(
            f"FeatureMoments.update: argument 'features' expected floating point, got {x.dtype}"
        )
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(
            f"FeatureMoments.update: argument 'features' expected shape (N, {d}), got {x.shape}"
        )
    return x if x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def _open(path: str | os.PathLike[str]) -> Any:
    try:
        file = np.load(path, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, EOFError):
        file = None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{os.fspath(path)}: expected an npz file")
    return file


def load_statistics(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """`mu` (d,) and `sigma` (d, d) of an npz, as pytorch-fid and clean-fid write them.

    Raises:
        ValueError: not an npz, a damaged one, without these arrays, or arrays of other shapes or
            with NaN or infinity; the message names the file.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    with _open(path) as file:
        missing = [key for key in ("mu", "sigma") if key not in file]
        if missing:
            raise ValueError(
                f"{name}: has no '{missing[0]}'; it holds {', '.join(file) or 'nothing'}"
            )
        try:
            mu, sigma = (np.asarray(file[key], np.float64) for key in ("mu", "sigma"))
        except _DAMAGE as error:
            raise ValueError(f"{name}: damaged statistics ({error})") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{name}: expected (d,) and (d, d), got {mu.shape} and {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{name}: NaN or infinity in the statistics")
    return mu, sigma
