"""FeatureMoments: the same bits in every split, accurate for any mean, safe to save and merge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap.metrics import FeatureMoments, load_statistics

D = 37
RNG = np.random.default_rng(11)
CHUNKS = [
    (2.0 + RNG.standard_normal((n, D))).astype(np.float32) for n in (3, 130, 1, 40, 1500, 7, 64)
]


def moments_of(chunks: list[np.ndarray], d: int = D) -> FeatureMoments:
    moments = FeatureMoments(d)
    for chunk in chunks:
        moments.update(chunk)
    return moments


def assert_same_bits(a: FeatureMoments, b: FeatureMoments) -> None:
    assert a.count == b.count
    for x, y in zip(a.statistics(), b.statistics(), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
def test_against_two_passes_in_float64(mean: float, dtype: str, isa: str) -> None:
    px.set_isa(isa)
    rows = torch.from_numpy(mean + np.random.default_rng(0).standard_normal((3000, D)))
    rows = rows.to(getattr(torch, dtype))
    exact = rows.double().numpy()
    moments = FeatureMoments(D)
    for chunk in rows.split([900, 5, 2095]):
        moments.update(chunk)
    tolerance = 1e-13 if dtype == "float64" else 3e-6  # of sums of 128 float32 products
    mean_got, covariance = moments.statistics()
    np.testing.assert_allclose(mean_got, exact.mean(axis=0), rtol=1e-12, atol=1e-13)
    want = np.cov(exact.T)
    assert np.abs(covariance - want).max() <= tolerance * np.abs(want).max()
    np.testing.assert_array_equal(covariance, covariance.T)


def test_a_far_mean_does_not_cancel() -> None:
    x = 1e6 + np.random.default_rng(1).standard_normal((500, D))
    want = np.cov(x.T)
    got = moments_of([x]).covariance
    assert np.abs(got - want).max() <= 1e-12 * np.abs(want).max()


def test_same_bits_for_any_thread_count() -> None:
    results = []
    for threads in (1, 2, 5):
        px.set_num_threads(threads)
        results.append(moments_of(CHUNKS))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_tiles_and_blocks(dtype: Any, isa: str) -> None:
    """The op adds in place, so that the threads of test_ops.py compare an array with itself."""
    px.set_isa(isa)
    d, n = 203, 2101
    x = (1 + np.random.default_rng(3).standard_normal((n, d))).astype(dtype)
    totals = []
    for threads in (1, 2, 5):
        px.set_num_threads(threads)
        second, first = np.zeros((d * (d + 1) // 2, 2), np.int64), np.zeros((d, 2), np.int64)
        px.ops.feature_moments(x, second, first)
        totals.append((second, first))
    for other in totals[1:]:
        for a, b in zip(totals[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    want = np.cov(x.T.astype(np.float64))
    got = px.ops.feature_covariance(*totals[0], n)[1]
    assert np.abs(got - want).max() <= (1e-6 if dtype is np.float32 else 1e-13) * want.max()


@pytest.mark.parametrize("isa", px.available_isas())
def test_totals_against_rational_arithmetic(isa: str) -> None:
    """Rows one by one are centred to zero: what is left is the way from products to integers."""
    px.set_isa(isa)
    rng = np.random.default_rng(4)
    magnitudes = 2.0 ** rng.integers(-40, 25, (40, 11))
    rows = (rng.choice([-1.0, 1.0], (40, 11)) * rng.uniform(1, 2, (40, 11)) * magnitudes).astype(
        np.float32
    )
    i, j = np.tril_indices(11)
    second, first = np.zeros((len(i), 2), np.int64), np.zeros((11, 2), np.int64)
    for row in rows:
        px.ops.feature_moments(row[None], second, first)

    def integers(totals: np.ndarray) -> np.ndarray:
        return totals[:, 1].astype(object) * 2**64 + totals[:, 0].view(np.uint64).astype(object)

    exact = np.array([[Fraction(float(v)) * 2**74 for v in row] for row in rows])
    np.testing.assert_array_equal(integers(first), exact.sum(axis=0))
    products = (exact[:, i] * exact[:, j] / 2**74).sum(axis=0)
    assert np.abs(integers(second) - products).max() <= 0.51 * len(rows)  # half a unit per row


def test_same_bits_however_chunks_are_spread() -> None:
    whole = moments_of(CHUNKS)
    for split in (1, 2, 4, 6):
        assert_same_bits(whole, moments_of(CHUNKS[:split]).merge(moments_of(CHUNKS[split:])))
    backwards = FeatureMoments(D)
    for chunk in reversed(CHUNKS):
        backwards.merge(moments_of([chunk]))
    assert_same_bits(whole, backwards)


def test_few_rows_are_kept_and_fold_to_the_same_bits() -> None:
    few = moments_of([CHUNKS[0], CHUNKS[2]])
    rows = few.low_rank()
    assert rows is not None
    np.testing.assert_array_equal(rows, np.concatenate([CHUNKS[0], CHUNKS[2]]).astype(np.float64))
    np.testing.assert_allclose(few.covariance, np.cov(rows.T), atol=1e-7)
    folded = moments_of([CHUNKS[0], CHUNKS[2], CHUNKS[1]])
    assert folded.low_rank() is None
    other = moments_of([CHUNKS[1]])
    assert_same_bits(folded, other.merge(few))
    assert few.low_rank() is not None  # what is merged stays as it is


def test_chunks_are_copied() -> None:
    chunk = CHUNKS[0].copy()
    moments = moments_of([chunk])
    chunk[:] = 0
    assert_same_bits(moments, moments_of([CHUNKS[0]]))


def test_totals_of_either_sign_carry() -> None:
    moments = FeatureMoments(2)
    rows = np.array([[-1.0, 1.0], [3.0, -0.5], [-7.25, 1e-20], [2.0, 2.0]])
    for _ in range(3):
        for row in rows:
            moments.merge(moments_of([row[None]], 2))
    want = np.concatenate([rows] * 3)
    np.testing.assert_allclose(moments.mean, want.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(moments.covariance, np.cov(want.T), rtol=1e-15)


def test_frechet_distance_of_float32_features() -> None:
    """As close to float64 moments as FID needs."""
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((64, 64)) * np.logspace(0, -2, 64)
    x, y = (np.maximum(rng.standard_normal((2000, 64)) @ mixing, 0) for _ in range(2))
    x, y = x.astype(np.float32), (1.1 * y).astype(np.float32)
    got = px.metrics.frechet_distance(
        *moments_of([x], 64).statistics(), *moments_of([y], 64).statistics()
    )
    exact = px.metrics.frechet_distance_from_features(x.astype(np.float64), y.astype(np.float64))
    assert got == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("chunks", [CHUNKS[:1], CHUNKS])
def test_save_and_load(tmp_path: Path, chunks: list[np.ndarray]) -> None:
    path = tmp_path / "moments.npz"
    moments = moments_of(chunks)
    moments.save(path)
    loaded = FeatureMoments.load(path)
    assert_same_bits(moments, loaded)
    for a, b in zip(load_statistics(path), moments.statistics(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_bits(moments.update(CHUNKS[1]), loaded.update(CHUNKS[1]))
    assert [p.name for p in tmp_path.iterdir()] == ["moments.npz"]


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    moments_of(CHUNKS).save(path)
    whole = path.read_bytes()
    contents: dict[str, bytes] = {"empty": b"", "text": b"mu", "cut": whole[: len(whole) // 2]}
    for content in contents.values():
        path.write_bytes(content)
        for load in (FeatureMoments.load, load_statistics):
            with pytest.raises(ValueError, match=r"x\.npz"):
                load(path)
    arrays: list[tuple[dict[str, Any], str]] = [
        ({"mu": np.zeros(3)}, "no 'sigma'"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "expected"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "NaN"),
        ({"mu": np.array(["a"] * 3), "sigma": np.eye(3)}, "damaged"),
    ]
    for given, message in arrays:
        np.savez(path, **given)
        with pytest.raises(ValueError, match=rf"x\.npz: .*{message}"):
            load_statistics(path)
        with pytest.raises(ValueError, match="no state"):
            FeatureMoments.load(path)
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("folded", [False, True])
def test_bad_updates_leave_the_state(folded: bool) -> None:
    def start() -> FeatureMoments:
        return moments_of(CHUNKS[:2] if folded else CHUNKS[:1])

    bad = CHUNKS[0].copy()
    bad[1, 5] = np.nan
    updates: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: bad, ValueError, "NaN or infinity in row 1"),
        (lambda: np.where(np.isnan(bad), np.inf, bad), ValueError, "row 1"),
        (lambda: CHUNKS[0][:, 1:], ValueError, r"expected shape \(N, 37\)"),
        (lambda: CHUNKS[0][0], ValueError, r"expected shape \(N, 37\)"),
        (lambda: CHUNKS[0].astype(np.int64), TypeError, "floating point"),
    ]
    if folded:
        updates.append((lambda: np.full((2, D), 1e9), ValueError, r"rescale.*column 0"))
    for make, error, message in updates:
        moments = start()
        with pytest.raises(error, match=message) as caught:
            moments.update(make())
        assert str(caught.value).startswith("FeatureMoments.update: ")
        assert_same_bits(moments, start())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'d' expected a positive integer, got 0"):
        FeatureMoments(0)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        _ = moments_of([CHUNKS[2]]).covariance
    with pytest.raises(ValueError, match="expected FeatureMoments of d=37, got d=3"):
        FeatureMoments(D).merge(FeatureMoments(3))


RANK = """
import sys
import numpy as np, torch
from torch import distributed
from pixleap.metrics import FeatureMoments
rank, world, file, folder, chunks = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], sys.argv[5:]
distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=world)
moments = FeatureMoments(37)
for chunk in np.array_split(np.arange(len(chunks)), world)[rank]:
    moments.update(np.load(chunks[chunk]))
moments.all_reduce()
moments.save(f"{folder}/{world}-{rank}.npz")
"""


@pytest.mark.parametrize("chunks", [[0, 2, 5], range(7)], ids=["few rows", "many rows"])
def test_all_reduce_over_processes(tmp_path: Path, chunks: Any) -> None:
    chosen = [CHUNKS[i] for i in chunks]
    files = [str(tmp_path / f"chunk{i}.npy") for i in range(len(chosen))]
    for file, chunk in zip(files, chosen, strict=True):
        np.save(file, chunk)
    whole = moments_of(chosen)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for world in (1, 2, 4):
        arguments = [str(tmp_path / f"store{world}"), str(tmp_path), *files]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(rank), str(world), *arguments], env=environment
            )
            for rank in range(world)
        ]
        assert [p.wait(timeout=300) for p in processes] == [0] * world
        for rank in range(world):
            reduced = FeatureMoments.load(tmp_path / f"{world}-{rank}.npz")
            assert_same_bits(reduced, whole)
            assert (reduced.low_rank() is None) == (whole.low_rank() is None)
