"""sample_tokens draws from the right distribution, filters as VAR does, and checks its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap.reference.sample_tokens import row_gumbel

V = 12
ROWS = 400  # draws per call; each call has its own offset


def official_keep(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """VAR's filters in torch, in float64: the mask of tokens that stay."""
    keep = torch.ones_like(logits, dtype=torch.bool)
    if top_k > 0:
        keep = logits >= logits.topk(top_k).values[..., -1:]
    left = logits.double().masked_fill(~keep, -torch.inf)
    if top_p < 1:
        ascending, order = left.sort(dim=-1, stable=True)
        gone = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        gone[..., -1] = False
        left = left.masked_fill(torch.empty_like(gone).scatter_(-1, order, gone), -torch.inf)
    return left > -torch.inf


def counts(logits: np.ndarray, draws: int = 120_000, **kwargs: Any) -> np.ndarray:
    """How often each token of one row is drawn."""
    batch = np.broadcast_to(logits, (draws // ROWS, ROWS, len(logits))).copy()
    uncond = kwargs.pop("uncond", None)
    if uncond is not None:
        kwargs["uncond"] = np.broadcast_to(uncond, batch.shape).copy()
    tokens = px.ops.sample_tokens(batch, seed=99, offset=7, **kwargs)
    return np.bincount(tokens.reshape(-1), minlength=len(logits))


def assert_distributed(observed: np.ndarray, probability: np.ndarray) -> None:
    """Pearson's chi-square test; cells with few expected counts are taken together."""
    assert (observed[probability == 0] == 0).all()
    expected = probability * observed.sum()
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum())
    observed = np.append(observed[~rare], observed[rare].sum())
    filled = expected > 0
    statistic = ((observed - expected)[filled] ** 2 / expected[filled]).sum()
    freedom = filled.sum() - 1
    if freedom > 0:
        tail = torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))
        assert tail > 1e-3


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_k": 9, "top_p": 0.7, "temperature": 1.3},
    {"guidance_scale": 2.5},
    {"guidance_scale": 1.5, "top_k": 8, "top_p": 0.9},
    {"noise_dtype": "float64", "temperature": 0.6},
    {"noise_dtype": "float64", "top_p": 0.8},
]


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_distribution(setting: dict[str, Any], isa: str) -> None:
    rng = np.random.default_rng(3)
    logits, uncond = rng.standard_normal((2, V)).astype(np.float32)
    kwargs, x = dict(setting), torch.from_numpy(logits).double()
    if "guidance_scale" in setting:
        kwargs["uncond"] = uncond
        g = setting["guidance_scale"]
        x = g * x + (1 - g) * torch.from_numpy(uncond).double()
    x = x / setting.get("temperature", 1.0)
    keep = official_keep(x, setting.get("top_k", 0), setting.get("top_p", 1.0))
    exact = x.masked_fill(~keep, -torch.inf).softmax(-1).numpy()
    px.set_isa(isa)
    observed = counts(logits, **kwargs)
    assert_distributed(observed, exact)


@pytest.mark.parametrize("kind", ["normal", "ties", "one value", "geometric", "outlier"])
@pytest.mark.parametrize(("top_k", "top_p"), [(7, 1.0), (0, 0.6), (30, 0.9), (64, 0.05), (1, 0.5)])
def test_filter_sets(kind: str, top_k: int, top_p: float) -> None:
    """Over many draws exactly the tokens that VAR's rule leaves come out. A high temperature makes
    all of them about equally likely, after the filters have acted on logits scaled up by it."""
    rng = np.random.default_rng(5)
    n = 64
    logits = {
        "normal": rng.standard_normal(n),
        "ties": rng.integers(0, 4, n) * 0.5,
        "one value": np.full(n, -2.5),
        "geometric": -0.03125 * 1.125 ** np.arange(n),
        "outlier": np.append(rng.standard_normal(n - 1), 4.0),
    }[kind].astype(np.float32)
    keep = official_keep(torch.from_numpy(logits), top_k, top_p).numpy()
    exact = np.where(keep, np.exp(logits.astype(np.float64)), 0)
    exact /= exact.sum()
    observed = counts(logits, 200_000, top_k=top_k, top_p=top_p)
    assert (observed[~keep] == 0).all()
    assert (observed[keep & (exact * 200_000 > 30)] > 0).all()
    assert_distributed(observed, exact)


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("top_k", [1, 2, 31, 32, 33, 500, 998, 999])
@pytest.mark.parametrize("kind", ["normal", "few values", "all exponents", "one outlier", "zeros"])
def test_top_k_threshold(kind: str, top_k: int, isa: str) -> None:
    """Every value at or above the k-th largest can be drawn, nothing below: at a temperature that
    flattens the row, the least drawn value of many draws is the k-th largest itself or above."""
    rng = np.random.default_rng(8)
    n = 1000
    row = {
        "normal": rng.standard_normal(n),
        "few values": rng.integers(-3, 3, n).astype(float),
        "all exponents": rng.choice([-1.0, 1.0], n) * 2.0 ** rng.uniform(-140, 120, n),
        "one outlier": np.append(rng.standard_normal(n - 1), 1e30),
        "zeros": np.where(rng.random(n) < 0.5, 0.0, -0.0),
    }[kind].astype(np.float32)
    rows = np.broadcast_to(row, (1, 400, n)).copy()
    before = px.isa()
    try:
        px.set_isa(isa)
        tokens = px.ops.sample_tokens(rows, temperature=1e38, top_k=top_k, seed=1)
    finally:
        px.set_isa(before)
    drawn, kth = row[tokens.reshape(-1)], np.sort(row)[-top_k]
    assert (drawn >= kth).all()
    if top_k <= 33 and kind not in ("one outlier",):  # each one is met with p > 1 - 1e-5
        assert drawn.min() == kth


@pytest.mark.parametrize("kwargs", [{}, {"top_k": 40, "top_p": 0.9}, {"top_k": 3}])
def test_a_sample_alone_equals_the_same_one_in_a_batch(kwargs: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).standard_normal((6, 5, 131)).astype(np.float32)
    whole = px.ops.sample_tokens(logits, seed=4, **kwargs)
    for b in range(6):
        part = px.ops.sample_tokens(logits[b : b + 1], seed=4, first_sample=b, **kwargs)
        np.testing.assert_array_equal(part, whole[b : b + 1])
    other = px.ops.sample_tokens(logits, seed=4, first_sample=1, **kwargs)
    assert (other != whole).any()


@pytest.mark.parametrize("kwargs", [{}, {"top_k": 3}, {"noise_dtype": "float64"}])
def test_a_window_equals_the_same_positions_of_the_whole(kwargs: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 8, 131)).astype(np.float32)
    whole = px.ops.sample_tokens(logits, seed=4, first_sample=2, **kwargs)
    for start, end in ((0, 3), (3, 4), (2, 8)):
        key = {"seed": 4, "first_sample": 2, "first_position": start, "length": 8}
        part = px.ops.sample_tokens(logits[:, start:end], **key, **kwargs)
        np.testing.assert_array_equal(part, whole[:, start:end])


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("kwargs", [{}, {"top_k": 4}])
def test_stream_position_beyond_32_bits(kwargs: dict[str, Any], isa: str) -> None:
    """Rows over which the low half of the group counter wraps, and a far one."""
    rng = np.random.default_rng(0)
    before = px.isa()
    try:
        px.set_isa(isa)
        for size in range(30, 70):
            logits = rng.standard_normal((2, 1, size)).astype(np.float32)
            for first in (2**34 // size, 2**50 + 1):
                key = {"seed": -3, "offset": -1, "first_sample": first}
                got = px.ops.sample_tokens(logits, **key, **kwargs)
                want = px.reference.sample_tokens(logits, **key, **kwargs)
                np.testing.assert_array_equal(got, want)
    finally:
        px.set_isa(before)


FILTERS: list[dict[str, Any]] = [{}, {"top_k": 40}, {"top_k": 3}, {"top_k": 60, "top_p": 0.9}]


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("noise_dtype", ["float32", "float64"])
def test_outputs_belong_together(filters: dict[str, Any], noise_dtype: str, isa: str) -> None:
    """Asking for more changes no token; all outputs speak of one distribution."""
    px.set_isa(isa)
    logits = np.random.default_rng(1).standard_normal((4, 9, 131)).astype(np.float32)
    key = {"seed": 3, "first_sample": 5, "noise_dtype": noise_dtype, "temperature": 0.8, **filters}
    tokens = px.ops.sample_tokens(logits, **key)
    drawn, log_prob, probabilities = px.ops.sample_tokens(
        logits, return_log_prob=True, return_probabilities=True, **key
    )
    np.testing.assert_array_equal(drawn, tokens)
    only = {k: v for k, v in key.items() if k in ("temperature", "top_k", "top_p")}
    np.testing.assert_array_equal(px.ops.token_probabilities(logits, **only), probabilities)
    scored = px.ops.token_probabilities(logits, tokens=tokens, log=True, **only)
    np.testing.assert_array_equal(scored, log_prob)
    at = np.take_along_axis(probabilities, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.exp(log_prob), at, rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    left = (probabilities > 0).sum(-1)
    if "top_k" in filters:
        assert (left <= filters["top_k"]).all()
    else:
        assert (left == 131).all()


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_largest_gumbel_softmax_weight_is_the_draw(filters: dict[str, Any], isa: str) -> None:
    px.set_isa(isa)
    rng = np.random.default_rng(2)
    logits, uncond = rng.standard_normal((2, 20, 30, 131)).astype(np.float32)
    key = {"uncond": uncond, "guidance_scale": 1.5, "seed": 8, "first_sample": 2, **filters}
    tokens = px.ops.sample_tokens(logits, **key)
    for temperature in (0.005, 0.27, 3.0):
        weights = px.ops.gumbel_softmax(logits, temperature=temperature, **key)
        np.testing.assert_array_equal(weights.argmax(-1), tokens)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("isa", px.available_isas())
def test_float64_noise_separates_what_float32_noise_ties(isa: str) -> None:
    """2^20 equal logits: a largest uniform of 23 bits is sometimes met twice, and then the lower
    index wins; these seeds show it. The bits below decide in float64, as the reference says."""
    px.set_isa(isa)
    logits = np.zeros((1, 2, 2**20), np.float32)
    for seed in (12, 24, 29, 58):
        key = {"seed": seed, "first_sample": 3}
        tied = px.ops.sample_tokens(logits, **key)[0]
        token = px.ops.sample_tokens(logits, noise_dtype="float64", **key)[0]
        row = int(np.flatnonzero(tied != token)[0])
        single, double = (row_gumbel(6 + row, 2**20, seed, 0, d) for d in ("float32", "float64"))
        assert single[token[row]] == single[tied[row]] == single.max()
        assert double.argmax() == token[row]


def test_bad_options() -> None:
    logits = np.zeros((1, 2, 8), np.float32)
    with pytest.raises(ValueError, match="'noise_dtype' expected 'float32' or 'float64', got bf16"):
        px.ops.sample_tokens(logits, noise_dtype="bf16")
    with pytest.raises(ValueError, match="argument 'out' expected 2 arrays, got 1"):
        px.ops.sample_tokens(logits, return_log_prob=True, out=np.zeros((1, 2), np.int64))
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="gumbel_softmax: argument 'temperature'"):
            px.ops.gumbel_softmax(logits, temperature=temperature)
    for logit_scale in (-1.0, np.inf):
        with pytest.raises(ValueError, match="gumbel_softmax: argument 'logit_scale'"):
            px.ops.gumbel_softmax(logits, logit_scale=logit_scale)
    for token in (-1, 8):
        with pytest.raises(ValueError, match=rf"'tokens' expected values from 0 to 7, got {token}"):
            px.ops.token_probabilities(logits, tokens=np.array([[3, token]]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", 9),
        ("temperature", -1e-9),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("first_sample", -1),
        ("first_position", -1),
        ("length", 1),
        ("length", -1),
    ],
)
def test_bad_numbers(name: str, value: float) -> None:
    kwargs: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"sample_tokens: argument '{name}'"):
        px.ops.sample_tokens(np.zeros((1, 2, 8), np.float32), **kwargs)


def test_no_tokens() -> None:
    with pytest.raises(ValueError, match="'logits' expected 1 to 2"):
        px.ops.sample_tokens(np.zeros((1, 2, 0), np.float32))
