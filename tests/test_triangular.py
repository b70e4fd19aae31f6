"""Solvers of triangular systems: the sequential result, whatever the window, guess or batch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from test_decode import LABELS, noise, random_flow

import pixleap as px
from pixleap.decode import (
    DenseSystem,
    FlowDecoder,
    Frontier,
    GSJacobi,
    Jacobi,
    Sequential,
    solve_triangular,
)
from pixleap.decode.flow_block import Guidance
from pixleap.decode.flow_plan import FlowPlan, LinearGuess
from pixleap.models import TarFlow

LENGTH = 17
COUPLING = np.tril(np.random.default_rng(0).standard_normal((LENGTH, LENGTH)), -1) * 0.6


def recurrence(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x_t = z_t exp(a) + b, by sums over all tokens before."""
    mixed = np.einsum("ts,bsc->btc", COUPLING, np.tanh(x))
    return z * np.exp(0.3 * np.sin(mixed)) + mixed


def loop(z: np.ndarray) -> np.ndarray:
    x = z.copy()
    for t in range(LENGTH):
        x[:, t] = recurrence(x, z)[:, t]
    return x


def dense_noise(batch: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, LENGTH, 2))


SOLVERS: list[Any] = [
    Sequential(),
    Jacobi(tol=1e-12),
    *(
        Frontier(tol=1e-12, window=w, init=init, per_sample=per_sample)
        for w, init, per_sample in itertools.product(
            ("auto", 1, 2, 5, 100), ("z", "zero"), (True, False)
        )
    ),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_solvers_give_the_sequential_result(solver: Any) -> None:
    z = dense_noise()
    seen: list[int] = []
    result = solve_triangular(DenseSystem(recurrence), z, solver, progress=seen.append)
    np.testing.assert_allclose(result.x, loop(z), rtol=0, atol=1e-10)
    assert result.converged.all()
    assert result.sweeps == len(result.tokens) == len(result.residuals) <= LENGTH
    assert sum(result.tokens) == result.evaluations.sum()
    assert seen == sorted(seen)
    assert seen[-1] == LENGTH


def test_an_exact_guess_takes_one_sweep() -> None:
    z = dense_noise()
    exact = Frontier(window=100, init=loop(z))
    result = solve_triangular(DenseSystem(recurrence), z, exact)
    assert result.sweeps == 1
    assert (result.evaluations == LENGTH).all()


def test_a_sample_alone_takes_the_same_sweeps() -> None:
    """Per-sample frontiers: neither values nor evaluations depend on the batch, and they are fewer
    than when all samples wait for the slowest."""
    z, solver = dense_noise(6), Frontier(tol=1e-3, window=5)
    together = solve_triangular(DenseSystem(recurrence), z, solver)
    for b in range(6):
        alone = solve_triangular(DenseSystem(recurrence), z[b : b + 1], solver)
        np.testing.assert_array_equal(alone.x[0], together.x[b])
        assert alone.evaluations[0] == together.evaluations[b]
    waiting = solve_triangular(
        DenseSystem(recurrence), z, Frontier(tol=1e-3, window=5, per_sample=False)
    )
    assert together.evaluations.sum() < waiting.evaluations.sum()
    assert len(set(together.evaluations)) > 1


def test_capped_solvers_say_what_did_not_converge() -> None:
    z = dense_noise()
    for solver in (Jacobi(tol=1e-9, max_sweeps=2), GSJacobi(3, max_sweeps=2, clamp=None)):
        result = solve_triangular(DenseSystem(recurrence), z, solver)
        assert not result.converged.any()
        assert result.sweeps <= 6
    exact = solve_triangular(
        DenseSystem(recurrence), z, GSJacobi(3, max_sweeps=6, clamp=None, bound=0.0)
    )
    np.testing.assert_allclose(exact.x, loop(z), atol=1e-12)
    assert solve_triangular(DenseSystem(recurrence), z, GSJacobi(0)).sweeps == LENGTH


def test_the_published_clamp_moves_the_fixed_point() -> None:
    z = 3 * dense_noise()
    expected = loop(z)
    assert np.abs(expected).max() > 3.5
    clamped = solve_triangular(DenseSystem(recurrence), z, GSJacobi(4, max_sweeps=50)).x
    free = solve_triangular(DenseSystem(recurrence), z, GSJacobi(4, max_sweeps=50, clamp=None)).x
    assert np.abs(clamped).max() <= 3
    assert np.abs(clamped - expected).max() > 0.3
    np.testing.assert_allclose(free, expected, atol=1e-6)


def test_given_tokens_stay() -> None:
    z = dense_noise()
    result = solve_triangular(DenseSystem(lambda x, z: x * 0 + 7, first=4), z, Frontier(window=3))
    np.testing.assert_array_equal(result.x[:, :4], z[:, :4])
    assert (result.x[:, 4:] == 7).all()


def test_bad_options() -> None:
    system, z = DenseSystem(recurrence), dense_noise()
    for make, message in (
        (lambda: Frontier(window=0), "Frontier: argument 'window' expected an integer >= 1"),
        (lambda: Frontier(window=[4, True]), "Frontier: argument 'window' expected"),
        (lambda: Frontier(tol=float("nan")), "Frontier: argument 'tol' expected a number >= 0"),
        (lambda: Frontier(overhead=0.0), "Frontier: argument 'overhead' expected None or a"),
        (lambda: Frontier(margin=0.5), "Frontier: argument 'margin' expected a number >= 1"),
        (lambda: Jacobi(max_sweeps=0), "Jacobi: argument 'max_sweeps' expected None or"),
        (lambda: GSJacobi(modules=-1), "GSJacobi: argument 'modules' expected integers >= 0"),
        (lambda: GSJacobi(max_sweeps=[1, 0]), "GSJacobi: argument 'max_sweeps' expected"),
        (lambda: solve_triangular(system, z, Frontier(init="best")), "'init' expected one of"),
        (lambda: solve_triangular(system, z, Frontier(init=z[:2])), r"'init' expected shape \(3,"),
        (lambda: solve_triangular(system, z, Frontier(window=[1, 2])), "1 blocks, got 2"),
        (lambda: solve_triangular(system, z, Frontier(draft_dtype="bfloat16")), "None for this"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# Flows


@pytest.mark.parametrize("window", [1, 3, 7, 48, 200, "auto"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", [196, 47])
def test_flow_of_any_length_equals_the_loop(tokens: int, batch: int, window: Any) -> None:
    """196 tokens, and the prime 47 by cutting positions off, with guidance, block by block."""
    model = random_flow(14)
    model.var = model.var[:tokens].clone()
    for block in model.blocks:
        block.pos_embed.data = block.pos_embed.data[:tokens].clone()
    decoder, z, labels = FlowDecoder(model), noise(model, batch), LABELS[:batch]
    guidance = Guidance(1.0, "ab", 0.9, True)
    x = solved = z
    for index, block in enumerate(reversed(model.blocks)):
        x = block.reverse(
            x, labels, guidance=1.0, guide_what="ab", attn_temp=0.9, annealed_guidance=True
        )
        system = decoder.system(index, labels, guidance, batch)
        solver = Frontier(tol=1e-5, window=window)
        solved = block.order(solve_triangular(system, block.order(solved), solver).x)
    torch.testing.assert_close(solved, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_flow_samples_do_not_depend_on_the_batch(guidance: float) -> None:
    """Bit for bit: each at its own frontier, in its own cache."""
    model = random_flow(7)
    decoder, z, labels = FlowDecoder(model), noise(model, 5), torch.tensor([0, 1, 2, -1, 1])
    options = {"solver": Frontier(tol=1e-3, window=6), "guidance": guidance}
    together = decoder(z, labels, **options)
    for b in range(5):
        alone = decoder(z[b : b + 1], labels[b : b + 1], **options)
        assert torch.equal(alone.images[0], together.images[b])
        for one, all_ in zip(alone.blocks, together.blocks, strict=True):
            assert one.evaluations[0] == all_.evaluations[b]
    waiting = decoder(
        z, labels, solver=Frontier(tol=1e-3, window=6, per_sample=False), guidance=guidance
    )
    assert sum(together.evaluations) < sum(waiting.evaluations)


@pytest.mark.parametrize("solver", [Jacobi(tol=1e-6), GSJacobi(4, 49, None, bound=0.0)], ids=str)
def test_other_solvers_invert_a_flow(solver: Any) -> None:
    model = random_flow(7)
    decoder, z = FlowDecoder(model), noise(model, 3)
    exact = decoder(z, LABELS[:3], solver=Sequential(), guidance=0.5)
    result = decoder(z, LABELS[:3], solver=solver, guidance=0.5)
    torch.testing.assert_close(result.images, exact.images, atol=1e-4, rtol=0)


def test_lists_have_one_entry_for_every_block() -> None:
    model = random_flow(5)
    decoder, z = FlowDecoder(model), noise(model, 1)
    result = decoder(z, solver=Frontier(window=[1, 24]))
    assert result.sweeps[0] == 24 > result.sweeps[1]
    assert decoder(z, solver=GSJacobi([1, 5], [2, 1])).sweeps == [2, 5]
    with pytest.raises(ValueError, match="'window' expected one entry for each of the 2 blocks"):
        decoder(z, solver=Frontier(window=[1, 2, 3]))


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_a_draft_in_low_precision_saves_evaluations(dtype: str) -> None:
    model = random_flow(7)
    decoder, z = FlowDecoder(model), noise(model, 4)
    plain = decoder(z, LABELS, solver=Frontier(tol=1e-3, window=48))
    exact = decoder(z, LABELS, solver=Sequential())
    solver = Frontier(tol=1e-3, window=48, draft_dtype=dtype, draft_tol=1e-3)
    result = decoder(z, LABELS, solver=solver)
    torch.testing.assert_close(result.images, exact.images, atol=1e-3, rtol=0)
    assert sum(result.evaluations) < sum(plain.evaluations)
    assert all(block.draft is not None for block in result.blocks)


def test_calibrated_plan(tmp_path: Any) -> None:
    model = random_flow(6)
    decoder, z = FlowDecoder(model), noise(model, 2)
    plan = decoder.calibrate(2, linear=True, rounds=1, guidance=1.0)
    assert len(plan.windows) == len(plan.linear) == len(plan.predicted) == 2
    assert all(1 <= w <= 35 for w in plan.windows)
    again = FlowPlan.from_json(plan.to_json())
    assert again == plan
    exact = decoder(z, LABELS[:2], solver=Sequential(), guidance=1.0)
    for init in ("z", "zero", "linear"):
        result = decoder(z, LABELS[:2], solver=again.solver(init=init, tol=1e-5), guidance=1.0)
        torch.testing.assert_close(result.images, exact.images, atol=1e-4, rtol=0)
    followed = decoder(z, LABELS[:2], solver=Frontier(), guidance=1.0)
    given = decoder(z, LABELS[:2], solver=plan.solver(), guidance=1.0)
    assert followed.sweeps == given.sweeps
    with pytest.raises(ValueError, match="'linear', which this plan was not calibrated for"):
        decoder.calibrate(1, rounds=1).solver(init="linear")
    with pytest.raises(ValueError, match="argument 'batch' expected >= 1, got 0"):
        decoder.calibrate(0)
    with pytest.raises(ValueError, match=r"FlowPlan.from_json: argument 'text' expected"):
        FlowPlan.from_json("{}")


def test_linear_guess_is_least_squares() -> None:
    torch.manual_seed(0)
    z = torch.randn(50, 3, 2, dtype=torch.float64)
    x = 2 * z + torch.tensor([1.0, -1.0], dtype=torch.float64)
    guess = LinearGuess.fit(z, x)
    torch.testing.assert_close(guess.guess(z), x)


def overflowing(scale: float) -> TarFlow:
    """Log-scales that grow with the token before: exp overflows for large ones."""
    model = random_flow(5)
    for block in model.blocks:
        torch.nn.init.constant_(block.proj_out.weight, scale)
    return model


def test_a_guess_that_overflows_falls_back_to_the_exact_result() -> None:
    """The guess of all tokens gives infinities in the first sweep; the frontier replaces them."""
    model = random_flow(5)
    decoder, z = FlowDecoder(model), noise(model, 2)
    wild = torch.full_like(z, 3e38)
    exact = decoder(z, LABELS[:2], solver=Sequential())
    result = decoder(z, LABELS[:2], solver=Frontier(tol=1e-5, window=24, init=[wild, wild]))
    torch.testing.assert_close(result.images, exact.images, atol=1e-4, rtol=0)


def test_weights_that_overflow_are_an_error() -> None:
    model = overflowing(1e30)
    for solver in (Sequential(), Frontier(window=8)):
        with pytest.raises(ValueError, match=r"block 0 .in sampling order. gives values that are"):
            FlowDecoder(model)(noise(model, 2), solver=solver)


def test_sample() -> None:
    model = random_flow(6)
    model.noise_std = 0.1
    labels = torch.tensor([0, 2, -1])
    images = model.sample(labels, seed=4, guidance=1.0, denoise=False)
    z = px.ops.random_normal((3, *model.var.shape), seed=4, like=model.var)
    torch.testing.assert_close(images, model.reverse(z, labels, 1.0), atol=1e-3, rtol=0)
    tail = model.sample(labels[1:], seed=4, first_sample=1, guidance=1.0, denoise=False)
    torch.testing.assert_close(tail, images[1:], atol=1e-3, rtol=0)
    clean = model.sample(labels, seed=4, guidance=1.0)
    torch.testing.assert_close(clean, model.denoise(images, labels, 0.1), atol=1e-4, rtol=0)
    assert len(model.metrics(images, labels).blocks) == 2
    assert model.sample(2, temperature=0.5).shape == (2, 1, 6, 6)
    decoder = model.decoder()
    assert model.decoder() is decoder
    model.blocks[0].proj_out.bias.data += 1
    model.blocks[0].proj_out.bias.add_(1)
    assert model.decoder() is not decoder
    with pytest.raises(ValueError, match="argument 'guide_what' expected letters"):
        model.sample(2, guidance=1.0, guide_what="x")
    with pytest.raises(ValueError, match="argument 'attn_temp' expected a number > 0, got 0"):
        model.sample(2, guidance=1.0, attn_temp=0.0)
