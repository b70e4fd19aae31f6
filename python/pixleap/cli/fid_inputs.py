"""What `pixleap fid` compares: folders of images, arrays of features, saved statistics."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = frozenset(
    (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)  # those of pytorch-fid


class InputError(Exception):
    """What the user can mend; printed as one line, exit code 2."""


@dataclass
class Folder:
    """Image files in sorted order."""

    path: Path
    files: list[Path]


@dataclass
class Features:
    """(n, d)."""

    path: Path
    array: np.ndarray


@dataclass
class Statistics:
    """Mean (d,) and covariance (d, d)."""

    path: Path
    mu: np.ndarray
    sigma: np.ndarray


Input = Folder | Features | Statistics


def open_input(path: Path, num: int | None = None) -> Input:
    """Tells by the path what it is; the first `num` images or rows of it.

    Raises:
        InputError: nothing there, no images, fewer than `num`, a file that does not read.
    """
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise InputError(f"{path}: no images ({', '.join(sorted(SUFFIXES))}) in this folder")
        return Folder(path, _first(files, num, path, "images"))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: expected a folder of images, a .npz or a .npy file")
    arrays = _read_arrays(path)
    if "mu" in arrays or "sigma" in arrays:
        return _statistics(path, arrays)
    array = arrays.get("features", arrays.get("feats"))
    if array is None and len(arrays) == 1:
        [array] = arrays.values()
    if array is None:
        raise InputError(
            f"{path}: expected arrays 'mu' and 'sigma', or 'features', got "
            f"{', '.join(arrays) or 'none'}"
        )
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: expected features of shape (n, d), got {array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: features have NaN or infinity")
    return Features(path, _first(array, num, path, "rows"))


def _first(items: Any, num: int | None, path: Path, what: str) -> Any:
    if num is not None and len(items) < num:
        raise InputError(f"{path}: --num {num}, but only {len(items)} {what} are there")
    return items[:num]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return {"features": file}
        with file:
            # The exact state that FeatureMoments saves beside mu and sigma is not needed here.
            wanted = [n for n in ("mu", "sigma") if n in file.files] or file.files
            return {name: file[name] for name in wanted}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: does not read as {path.suffix} ({_line(error)})") from error


def _statistics(path: Path, arrays: dict[str, np.ndarray]) -> Statistics:
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise InputError(f"{path}: statistics without '{name}'")
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: expected mu (d,) and sigma (d, d), got {mu.dtype} {mu.shape} and "
            f"{sigma.shape}"
        )
    return Statistics(path, mu, sigma)


def image_files(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted by their path in it."""
    found = []
    for root, _, names in os.walk(folder):
        found += [Path(root, n) for n in names if Path(n).suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def read_image(path: Path) -> Any:
    """The picture as 8-bit RGB.

    Raises:
        InputError: an image that does not decode, or of more than 8 bits, which PIL would clip.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: {image.mode} pixels; images of 8 bits are expected")
            return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise InputError(f"{path}: not a readable image ({_line(error)})") from error


def image_batches(files: list[Path], batch: int) -> Iterator[list[Any]]:
    """Decoded images in order, read one batch ahead by threads (PIL decodes without the GIL)."""
    parts = deque(files[i : i + batch] for i in range(0, len(files), batch))
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        ahead: deque[list[Future[Any]]] = deque()
        try:
            while parts or ahead:
                while parts and len(ahead) < 2:
                    ahead.append([pool.submit(read_image, file) for file in parts.popleft()])
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
