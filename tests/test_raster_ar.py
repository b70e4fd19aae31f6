"""The raster-order digit model: native pass against torch, and Jacobi decoding, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pixleap as px  # noqa: E402
from pixleap.decode import (  # noqa: E402
    Frontier,
    RowAbove,
    Speculative,
    SpeculativeJacobi,
    raster,
)
from pixleap.models import (  # noqa: E402
    NativeRasterAR,
    RasterAR,
    load_raster_ar,
    raster_ar,
    save_checkpoint,
)

WEIGHTS = Path(__file__).resolve().parent.parent / "bench" / "models" / "raster_digits.npz"
LENGTH = 64


@pytest.fixture(scope="module")
def trained() -> NativeRasterAR:
    return NativeRasterAR(load_raster_ar(WEIGHTS))


def nothing(batch: int) -> torch.Tensor:
    return torch.zeros((batch, 0), dtype=torch.int64)


def some_tokens(batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, (batch, LENGTH - 1), generator=generator)


@pytest.mark.parametrize("guided", [False, True])
def test_native_logits_are_those_of_torch(trained: NativeRasterAR, guided: bool) -> None:
    labels, tokens = torch.tensor([3, -1, 9]), some_tokens(3)
    got = trained.conditioned(labels, guided)(tokens, 0)
    want = trained.model(tokens, labels)
    if guided:
        got, free = got
        unlabelled = trained.model(tokens, torch.full((3,), -1))
        torch.testing.assert_close(free, unlabelled, atol=1e-4, rtol=1e-4)
        assert float((want - unlabelled).abs().max()) > 1
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_half_precision_weights_stay_close(trained: NativeRasterAR) -> None:
    tokens, labels = some_tokens(2), torch.tensor([1, 2])
    exact = trained.conditioned(labels)(tokens, 0)
    close = NativeRasterAR(trained.model, "bfloat16").conditioned(labels)(tokens, 0)
    assert 0 < float((exact - close).abs().max()) < 0.5


@pytest.mark.parametrize("isa", px.available_isas())
def test_bits_of_a_row_do_not_depend_on_the_rows(
    trained: NativeRasterAR, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of any size, against all positions at once; without padding they would differ."""
    px.set_isa(isa)
    labels, tokens = torch.tensor([3, 5]), some_tokens(2)
    whole = trained.conditioned(labels)(tokens, 0)

    def same(window: int) -> bool:
        model = trained.conditioned(labels)
        parts = []
        for start in range(0, LENGTH, window):
            end = min(start + window, LENGTH)
            parts.append(model(tokens[:, : end - 1], start))
        return torch.equal(torch.cat(parts, 1), whole)

    assert all(same(window) for window in (1, 2, 5, 6, 7, 8, 9, 16, 31))
    monkeypatch.setattr(raster_ar, "_QUERIES", 1)
    assert not same(1)


def test_rolled_back_rows_leave_no_trace(trained: NativeRasterAR) -> None:
    labels = torch.tensor([3])
    model, tokens, other = trained.conditioned(labels), some_tokens(1), some_tokens(1, 1)
    model(other[:, :40], 0)
    mixed = torch.cat((other[:, :9], tokens[:, 9:]), 1)
    got = model(mixed[:, :30], 10)
    want = trained.conditioned(labels)(mixed[:, :30], 0)[:, 10:]
    assert torch.equal(got, want)


def test_jacobi_is_the_loop_bit_for_bit_on_1024_sequences(trained: NativeRasterAR) -> None:
    labels = torch.arange(256) % 10
    for seed in range(4):
        model = trained.conditioned(labels)
        plain = raster(model, nothing(256), LENGTH, seed=seed)
        assert plain.passes == LENGTH
        assert 0.2 < float((plain.tokens > 0).double().mean()) < 0.6
        decoder = Frontier(window=(16, 64)[seed % 2])
        fast = raster(model, nothing(256), LENGTH, seed=seed, decoder=decoder)
        assert torch.equal(fast.tokens, plain.tokens)
        assert fast.passes < LENGTH / 2  # the slowest of 256 decides


def test_four_times_fewer_passes_alone(trained: NativeRasterAR) -> None:
    """And the loop's tokens, with top-k and temperature, with guidance."""
    passes: dict[str, list[int]] = {"jacobi": [], "none": [], "maximal": []}
    for seed in range(24):
        model = trained.conditioned(torch.tensor([seed % 10]))
        plain = raster(model, nothing(1), LENGTH, seed=seed)
        fast = raster(model, nothing(1), LENGTH, seed=seed, decoder=Frontier(window=16))
        assert torch.equal(fast.tokens, plain.tokens)
        passes["jacobi"].append(fast.passes)
        for coupling in ("none", "maximal"):
            result = raster(
                model, nothing(1), LENGTH, seed=seed, decoder=SpeculativeJacobi(16, coupling)
            )
            assert int(result.tokens.min()) >= 0 and int(result.tokens.max()) < 16
            passes[coupling].append(result.passes)
    mean = {name: float(np.mean(counts)) for name, counts in passes.items()}
    assert mean["jacobi"] <= LENGTH / 4
    assert mean["maximal"] < mean["none"] < LENGTH / 3
    guided = trained.conditioned(torch.tensor([7]), guided=True)
    options = {"guidance_scale": 2.0, "top_k": 8, "temperature": 0.9}
    plain = raster(guided, nothing(1), LENGTH, **options)
    fast = raster(
        guided, nothing(1), LENGTH, decoder=Frontier(window=12, init=RowAbove(8)), **options
    )
    assert torch.equal(fast.tokens, plain.tokens)
    with_draft = Speculative(trained.conditioned(torch.tensor([7])), 4)
    model = trained.conditioned(torch.tensor([7]))
    assert raster(model, nothing(1), LENGTH, decoder=with_draft).passes == 13  # all are kept


def test_speculative_jacobi_keeps_the_models_statistics(trained: NativeRasterAR) -> None:
    """Mean grey of each row of pixels over 240 digits, against the loop's: within five errors."""
    labels = torch.arange(240) % 10
    model = trained.conditioned(labels)
    want = raster(model, nothing(240), LENGTH, seed=1).tokens.double().view(240, 8, 8).mean(2)
    for coupling in ("none", "maximal"):
        decoder = SpeculativeJacobi(16, coupling)
        result = raster(model, nothing(240), LENGTH, seed=2, decoder=decoder)
        got = result.tokens.double().view(240, 8, 8).mean(2)
        error = ((want.var(0) + got.var(0)) / 240).sqrt()
        assert bool(((got.mean(0) - want.mean(0)).abs() <= 5 * error + 1e-9).all())


def test_trained_weights_load_and_foreign_ones_do_not(tmp_path: Path) -> None:
    model = load_raster_ar(WEIGHTS)
    assert model.config["length"] == LENGTH and model.vocabulary == 16
    assert WEIGHTS.stat().st_size < 400_000
    state = model.state_dict()
    state["extra"] = state.pop("head.bias")
    save_checkpoint(tmp_path / "raster.npz", model.config, state)
    with pytest.raises(ValueError, match=r"missing: head.bias\n  unexpected: extra"):
        load_raster_ar(tmp_path / "raster.npz")


def test_bad_arguments(trained: NativeRasterAR) -> None:
    with pytest.raises(ValueError, match="width=10 is not a multiple of heads=4"):
        RasterAR(16, 64, 10, 1, 4)
    with pytest.raises(ValueError, match="argument 'labels' expected numbers below 10, got 10"):
        trained.conditioned(torch.tensor([10]))
    model = trained.conditioned(torch.tensor([1, 2]))
    for tokens, start, message in (
        (some_tokens(3), 0, r"argument 'tokens' expected shape \(2, up to 63\), got \(3, 63\)"),
        (torch.zeros((2, 64), dtype=torch.int64), 0, r"got \(2, 64\)"),
        (some_tokens(2), 1, "argument 'start' expected 0 to 0, got 1"),
        (some_tokens(2), -1, "argument 'start' expected 0 to 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens, start)
