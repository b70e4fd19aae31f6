"""Tables of angles against sums written out, in exact arithmetic where that is possible."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

import pixleap as px


def test_tables_against_mpmath() -> None:
    cos, sin = px.rope.tables(5000, 6, base=500.0)
    assert cos.shape == sin.shape == (5000, 3) and cos.dtype == sin.dtype == np.float32
    for p in (0, 1, 77, 4999):
        for k in range(3):
            angle = p * mpmath.mpf(500) ** (mpmath.mpf(-2 * k) / 6)
            assert abs(cos[p, k] - mpmath.cos(angle)) < 4e-8
            assert abs(sin[p, k] - mpmath.sin(angle)) < 4e-8


def test_axial_is_rows_then_columns() -> None:
    cos, sin = px.rope.axial(3, 5, 8, base=100.0)
    rows, columns = px.rope.tables(3, 4, 100.0), px.rope.tables(5, 4, 100.0)
    assert cos.shape == (15, 4)
    for y in range(3):
        for x in range(5):
            for got, row, column in zip((cos, sin), rows, columns, strict=True):
                np.testing.assert_array_equal(got[5 * y + x], np.r_[row[y], column[x]])


def test_axial_scores_depend_on_the_offset_in_the_grid() -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 1, 3, 1, 8)).astype(np.float32)
    qkv = np.ascontiguousarray(np.broadcast_to(tokens, (1, 12, 3, 1, 8)))
    caches = np.zeros((1, 1, 12, 8), np.float32), np.zeros((1, 1, 12, 8), np.float32)
    q, k, _ = px.ops.kv_append(qkv, *caches, 0, rope=px.rope.axial(3, 4, 8))
    scores = (q[0, 0] @ k[0, 0].T).reshape(3, 4, 3, 4)
    np.testing.assert_allclose(scores[1:, 1:, 1:, 1:], scores[:2, :3, :2, :3], atol=1e-5)
    assert abs(scores[0, 0, 1, 0] - scores[0, 0, 0, 1]) > 1e-3


def test_positions_on_three_axes() -> None:
    """FLUX: text at (0, 0, 0), image at (0, y, x)."""
    positions = np.array([[0, 0, 0], [0, 2, 3], [1, -1, 0.5]])
    cos, sin = px.rope.from_positions(positions, (2, 4, 6))
    frequencies = [1.0, 1.0, 10000 ** (-1 / 2), 1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    angles = positions[:, [0, 1, 1, 2, 2, 2]] * frequencies
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-7)


def test_nothing_to_do() -> None:
    assert px.rope.tables(0, 6)[0].shape == (0, 3) and px.rope.tables(3, 0)[0].shape == (3, 0)
    assert px.rope.axial(0, 4, 8)[1].shape == (0, 4)
    assert px.rope.from_positions(np.zeros((2, 0)), ())[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.tables(-1, 4), "rope.tables: argument 'length' expected a size >= 0, got -1"),
        (lambda r: r.tables(3, 5), "argument 'dim' expected an even number >= 0, got 5"),
        (lambda r: r.tables(3, -2), "argument 'dim' expected an even number >= 0, got -2"),
        (lambda r: r.tables(3, 4, 0.0), "argument 'base' expected a number above 0, got 0.0"),
        (lambda r: r.tables(3, 4, np.nan), "argument 'base' expected a number above 0, got nan"),
        (lambda r: r.axial(2, -3, 8), "rope.axial: argument 'width' expected a size >= 0, got -3"),
        (lambda r: r.axial(2, 3, 6), "rope.axial: argument 'dim' .* that 4 divides, got 6"),
        (
            lambda r: r.from_positions(np.zeros((4, 3)), (2, 2)),
            r"shape \(tokens, 2\).*got \(4, 3\)",
        ),
        (lambda r: r.from_positions([[[0]]], (2,)), r"'positions' expected shape"),
        (lambda r: r.from_positions([np.inf], (2,)), r"'positions' expected finite numbers"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(px.rope)
