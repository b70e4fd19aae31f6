"""speculative_accept gives the target's law in every mode, whatever the draft, and accepts as often
as its mode can; relaxed_accept does what its rules say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import pixleap as px

N = 200_000
DRAFTS = ("good", "bad", "disjoint", "equal", "one-hot", "one-hot target", "scaled")
SIZES = ((5, 1), (7, 2), (4, 3))  # V, L


def rows(shape: tuple[int, ...], kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 probabilities p and q of a kind, over the last axis."""
    rng = np.random.default_rng([seed, *shape])
    p, q = rng.dirichlet(np.ones(shape[-1]), (2, *shape[:-1]))
    if kind == "good":
        q = 0.8 * p + 0.2 * q
    elif kind == "disjoint":
        p[..., ::2] = q[..., 1::2] = 0
    elif kind == "equal":
        q = p.copy()
    elif kind.startswith("one-hot"):
        hot = np.where(q == q.max(axis=-1, keepdims=True), q, 0)
        p, q = (hot, p) if kind == "one-hot target" else (p, hot)
    scale = 7.3 if kind == "scaled" else 1 / p.sum(axis=-1, keepdims=True)
    return (scale * p).astype(np.float32), (q / q.sum(axis=-1, keepdims=True)).astype(np.float32)


def normalised(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / x.sum(axis=-1, keepdims=True)


def drawn(rng: np.random.Generator, table: np.ndarray, index: Any = None) -> np.ndarray:
    """N tokens of each row of a table (L, V), or one of each row `index` names (N,)."""
    sums = normalised(table).cumsum(axis=-1)
    last = table.shape[-1] - 1
    if index is not None:
        tokens = (sums[index] <= rng.random((len(index), 1)) * sums[index, -1:]).sum(axis=-1)
        return np.minimum(tokens, last)
    columns = [np.searchsorted(row, rng.random(N) * row[-1], side="right") for row in sums]
    return np.minimum(np.stack(columns, axis=1), last)


def product(p: np.ndarray) -> np.ndarray:
    """The law over V^L outcomes of independent rows (L, V), float64."""
    law = np.ones(1)
    for row in normalised(p):
        law = np.outer(law, row).reshape(-1)
    return law


def outcome(tokens: np.ndarray, size: int) -> np.ndarray:
    """Outcomes of rows of tokens as in `product`."""
    number = np.zeros(len(tokens), np.int64)
    for column in tokens.T:
        number = number * size + column
    return number


def assert_law(outcomes: np.ndarray, law: np.ndarray) -> None:
    """Pearson's chi-square test; cells with few expected counts are taken together."""
    observed = np.bincount(outcomes, minlength=len(law))
    assert (observed[law == 0] == 0).all()
    expected = law * len(outcomes)
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    filled = expected > 0
    if filled.sum() > 1:
        assert stats.chisquare(observed[filled], expected[filled]).pvalue > 0.01


def assert_rate(accepted: np.ndarray, probability: float) -> None:
    probability = float(np.clip(probability, 0, 1))
    if min(probability, 1 - probability) < 1e-6:
        assert abs(accepted.mean() - probability) < 1e-4
    else:
        assert stats.binomtest(int(accepted.sum()), accepted.size, probability).pvalue > 0.01


def distance(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p - q).sum())


def repeated(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (N, *x.shape))


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize(("size", "length"), SIZES)
def test_token(size: int, length: int, kind: str) -> None:
    p, q = rows((length, size), kind)
    drafted = drawn(np.random.default_rng(1), q)
    tokens, accepted, lengths = px.ops.speculative_accept(repeated(p), repeated(q), drafted, seed=2)
    assert_law(outcome(tokens, size), product(p))
    for l in range(length):  # noqa: E741
        assert_rate(accepted[:, l], 1 - distance(normalised(p[l]), normalised(q[l])))
    np.testing.assert_array_equal(tokens[accepted], drafted[accepted])
    np.testing.assert_array_equal(lengths, np.cumprod(accepted, axis=1).sum(axis=1))


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize(("size", "length"), SIZES)
def test_joint(size: int, length: int, kind: str) -> None:
    p, q = rows((length, size), kind)
    drafted = drawn(np.random.default_rng(1), q)
    tokens, accepted, lengths = px.ops.speculative_accept(
        repeated(p), repeated(q), drafted, mode="joint", seed=31
    )
    law = product(p)
    assert_law(outcome(tokens, size), law)
    assert (accepted == accepted[:, :1]).all()
    np.testing.assert_array_equal(lengths, np.where(accepted[:, 0], length, 0))
    np.testing.assert_array_equal(tokens[accepted], drafted[accepted])
    assert_rate(accepted[:, 0], 1 - distance(law, product(q)))
    rejected = outcome(tokens[~accepted[:, 0]], size)  # stricter than the law of all
    if len(rejected) > 1000:
        residual = np.maximum(law - product(q), 0)
        residual[residual < 1e-15] = 0
        assert_law(rejected, residual / residual.sum())


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize(("size", "length", "bonus"), [(5, 1, True), (7, 2, False), (3, 3, True)])
def test_chain(size: int, length: int, kind: str, bonus: bool) -> None:
    """A Markov chain: the rows of a sample hang on the tokens drafted before. What verification
    leaves open is drawn from the target; the whole must follow the target's chain."""
    start_p, start_q = rows((size,), kind, seed=1)
    step_p, step_q = rows((size, size), kind, seed=2)
    rng = np.random.default_rng(3)
    drafted = np.empty((N, length), np.int64)
    target, draft = np.empty((2, N, length + 1, size), np.float32)
    for l in range(length + 1):  # noqa: E741
        target[:, l] = step_p[drafted[:, l - 1]] if l else start_p
        draft[:, l] = step_q[drafted[:, l - 1]] if l else start_q
        if l < length and l:
            drafted[:, l] = drawn(rng, step_q, drafted[:, l - 1])
        elif l < length:
            drafted[:, 0] = drawn(rng, start_q[None])[:, 0]
    tokens, accepted, lengths = px.ops.speculative_accept(
        target[:, : length + bonus], draft[:, :length], drafted, mode="chain", seed=4
    )
    assert_rate(accepted[:, 0], 1 - distance(normalised(start_p), normalised(start_q)))
    index = np.arange(length + bonus)
    np.testing.assert_array_equal(accepted, np.arange(length) < lengths[:, None])
    np.testing.assert_array_equal(tokens >= 0, index <= lengths[:, None])
    np.testing.assert_array_equal(tokens[:, :length][accepted], drafted[accepted])
    for l in range(length + bonus):  # noqa: E741
        fresh = drawn(rng, step_p, tokens[:, l - 1]) if l else tokens[:, 0]
        tokens[:, l] = np.where(tokens[:, l] < 0, fresh, tokens[:, l])
    law = normalised(start_p)
    for _ in range(length + bonus - 1):
        law = (law.reshape(-1, size)[..., None] * normalised(step_p)).reshape(-1)
    assert_law(outcome(tokens, size), law)


def test_joint_accepts_more_scales_than_tokens_do() -> None:
    """1 - TV(P, Q) >= prod(1 - TV_l)."""
    p, q = rows((12, 9), "good", seed=5)
    drafted = drawn(np.random.default_rng(1), q)[:20_000]
    rate = {}
    for mode in ("token", "joint"):
        _, accepted, _ = px.ops.speculative_accept(
            repeated(p)[:20_000], repeated(q)[:20_000], drafted, mode=mode, seed=1
        )
        rate[mode] = accepted.all(axis=1).mean()
    assert rate["joint"] > 1.5 * rate["token"] > 0


def test_joint_residual_of_close_distributions() -> None:
    """A drafted scale that Q gives more often than P, though both are within 1e-3: replacements
    come under the envelope that keeps tries few, and follow the residual."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(4), 2).astype(np.float32)
    p = (q.astype(np.float64) * (1 + 1e-3 * rng.standard_normal(q.shape))).astype(np.float32)
    law_p, law_q = product(p), product(q)
    worst = np.array(np.unravel_index((law_p / law_q).argmin(), (4, 4)))
    tokens, accepted, _ = px.ops.speculative_accept(
        repeated(p), repeated(q), np.broadcast_to(worst, (N, 2)), mode="joint", seed=6
    )
    rejected = outcome(tokens[~accepted[:, 0]], 4)
    assert len(rejected) > 300
    residual = np.maximum(law_p - law_q, 0)
    assert_law(rejected, residual / residual.sum())


@pytest.mark.parametrize("mode", ["token", "joint", "chain"])
def test_a_sample_alone_equals_the_same_one_in_a_batch(mode: str) -> None:
    p, q = rows((6, 5, 67), "good")
    drafted = drawn(np.random.default_rng(1), q.reshape(30, 67), np.arange(30)).reshape(6, 5)
    whole = px.ops.speculative_accept(p, q, drafted, mode=mode, seed=4)
    assert 0 < whole[1].sum() < whole[1].size
    for b in range(6):
        part = px.ops.speculative_accept(
            p[b : b + 1], q[b : b + 1], drafted[b : b + 1], mode=mode, seed=4, first_sample=b
        )
        for got, want in zip(part, whole, strict=True):
            np.testing.assert_array_equal(got, want[b : b + 1])
    other = px.ops.speculative_accept(p, q, drafted, mode=mode, seed=4, first_sample=1)
    assert (other[0] != whole[0]).any()


@pytest.mark.parametrize("mode", ["token", "joint", "chain"])
def test_rounded_and_scaled_rows_of_one_distribution_are_accepted(mode: str) -> None:
    """Sums that are not exactly 1 make no rejections: rows are divided by them in float64."""
    p, _ = rows((400, 8, 64), "bad")
    drafted = drawn(np.random.default_rng(1), p.reshape(-1, 64), np.arange(3200)).reshape(400, 8)
    _, accepted, _ = px.ops.speculative_accept(np.float32(4) * p, p, drafted, mode=mode, seed=3)
    assert accepted.all()


@pytest.mark.parametrize("mode", ["token", "joint", "chain"])
def test_impossible_token_is_replaced_by_the_target(mode: str) -> None:
    """q = 0 at the drafted token and p = q elsewhere: no residual, so p is drawn from."""
    p = np.array([0.5, 0.0, 0.3, 0.2], np.float32)
    full = np.broadcast_to(p, (N, 1, 4))
    tokens, accepted, lengths = px.ops.speculative_accept(
        full, full, np.ones((N, 1), np.int64), mode=mode, seed=9
    )
    assert not accepted.any() and not lengths.any()
    assert_law(tokens[:, 0], normalised(p))


def bad_call(**changes: Any) -> Any:
    p, q = rows((3, 4, 6), "bad")
    call: dict[str, Any] = {"target": p, "draft": q, "tokens": np.zeros((3, 4), np.int64)}
    for name, value in changes.items():
        if name in call and np.ndim(value) == 0:
            call[name][1, 2:] = value
        else:
            call[name] = value
    return px.ops.speculative_accept(**call)


@pytest.mark.parametrize("mode", ["token", "joint"])
@pytest.mark.parametrize("name", ["target", "draft"])
@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, 0.0])
def test_bad_rows(name: str, value: float, mode: str) -> None:
    message = (
        f"speculative_accept: argument '{name}' expected rows of probabilities, .* got a row "
        "without that at sample 1, position 2$"
    )
    with pytest.raises(ValueError, match=message):
        bad_call(mode=mode, **{name: value})


@pytest.mark.parametrize("token", [-1, 6, 2**62])
def test_bad_tokens(token: int) -> None:
    message = rf"'tokens' expected numbers in \[0, 6\), got {token} at sample 1, position 2$"
    with pytest.raises(ValueError, match=message):
        bad_call(tokens=token)


def test_bad_arguments() -> None:
    p, q = rows((3, 4, 6), "bad")
    longer = np.concatenate([p, p[:, :1]], axis=1)
    for error, message, changes in (
        (ValueError, "'mode' expected 'token', 'joint' or 'chain', got raster", {"mode": "raster"}),
        (ValueError, r"'target' expected shape \(3, 4, 6\), got \(3, 5, 6\)", {"target": longer}),
        (ValueError, "'first_sample' expected a number >= 0, got -1", {"first_sample": -1}),
        (TypeError, "'draft' expected dtype float32, got float64", {"draft": q.astype("f8")}),
        (TypeError, "'tokens' expected dtype int64", {"tokens": np.zeros((3, 4), np.int32)}),
        (ValueError, r"'tokens' expected shape \(3, 4\)", {"tokens": np.zeros((3, 5), np.int64)}),
    ):
        with pytest.raises(error, match=f"speculative_accept: argument {message}"):
            bad_call(**changes)
    tokens, _, lengths = bad_call(target=longer, mode="chain")
    assert tokens.shape == (3, 5) and lengths.shape == (3,)


def relaxed(rule: str, p: np.ndarray, q: np.ndarray, drafted: np.ndarray, **kwargs: Any) -> Any:
    return px.ops.relaxed_accept(repeated(p), repeated(q), drafted, rule=rule, seed=3, **kwargs)


def test_tolerance_stays_within_its_bound() -> None:
    p, q = rows((1, 7), "bad")
    drafted = drawn(np.random.default_rng(1), q)
    exact_p, exact_q = normalised(p[0]), normalised(q[0])
    for tolerance in (0.0, 0.1, 0.3):
        tokens, accepted, _ = relaxed("tolerance", p, q, drafted, tolerance=tolerance)
        stays = np.minimum(1, exact_p / exact_q + tolerance)
        assert_rate(accepted[:, 0], float((exact_q * stays).sum()))
        residual = np.maximum(exact_p - exact_q, 0)
        law = exact_q * stays + (1 - (exact_q * stays).sum()) * residual / residual.sum()
        assert_law(tokens[:, 0], law)
        assert distance(law, exact_p) <= tolerance * exact_q[exact_q > exact_p].sum() + 1e-12
    exact = px.ops.speculative_accept(repeated(p), repeated(q), drafted, seed=3)
    for got, want in zip(relaxed("tolerance", p, q, drafted, tolerance=0), exact, strict=True):
        np.testing.assert_array_equal(got, want)


def test_typical_is_a_threshold() -> None:
    p, q = rows((1, 7), "bad")
    exact = normalised(p[0])
    drafted = drawn(np.random.default_rng(1), q)
    entropy = -(exact * np.log(exact)).sum()
    residual = np.maximum(exact - normalised(q[0]), 0)
    for epsilon, delta in ((0.2, 5.0), (0.9, 1.0)):  # either one decides
        threshold = min(epsilon, delta * np.exp(-entropy))
        assert (exact > threshold).any() and (exact < threshold).any()
        tokens, accepted, _ = relaxed("typical", p, q, drafted, epsilon=epsilon, delta=delta)
        np.testing.assert_array_equal(accepted, exact[drafted] > threshold)
        assert_law(tokens[~accepted], residual / residual.sum())


def test_neighbourhood_takes_the_nearest_that_fit() -> None:
    p = np.array([[0.1, 0.2, 0.05, 0.4, 0.25]], np.float32)
    q = np.array([[0.6, 0.1, 0.1, 0.1, 0.1]], np.float32)
    near = np.tile(np.array([0, 2, 1, 3]), (5, 1))
    drafted = np.zeros((N, 1), np.int64)
    for delta, raised in ((0.0, 0.1), (0.06, 0.15), (0.26, 0.35), (0.3, 0.35), (1.0, 0.75)):
        _, accepted, _ = relaxed("neighbourhood", p, q, drafted, neighbours=near, delta=delta)
        assert_rate(accepted, min(1.0, raised / 0.6))


def test_relaxed_bad_arguments() -> None:
    p, q = rows((3, 4, 6), "bad")
    call: dict[str, Any] = {"target": p, "draft": q, "tokens": np.zeros((3, 4), np.int64)}
    near = np.zeros((6, 2), np.int64)
    near[0] = 1, 6
    for message, changes in (
        ("'rule' expected 'typical', 'neighbourhood' or 'tolerance', got x", {"rule": "x"}),
        ("'mode' expected 'token' or 'chain', got joint", {"rule": "typical", "mode": "joint"}),
        ("'neighbours' expected a", {"rule": "neighbourhood"}),
        ("'neighbours' expected None", {"rule": "typical", "neighbours": near}),
        (r"'neighbours' expected numbers in \[0, 6\)", {"rule": "neighbourhood",
                                                        "neighbours": near, "delta": 1.0}),
        (r"'neighbours' expected shape \(6, \*\)", {"rule": "neighbourhood",
                                                    "neighbours": near[:5]}),
        ("'epsilon' expected a finite number >= 0, got -1", {"rule": "typical", "epsilon": -1.0}),
        ("'delta' expected a finite number >= 0, got nan", {"rule": "typical", "delta": np.nan}),
        ("'tolerance' expected a finite number", {"rule": "tolerance", "tolerance": np.inf}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"relaxed_accept: argument {message}"):
            px.ops.relaxed_accept(**{**call, **changes})
