"""Guidance rules against their formulas in NumPy float64, and against diffusers' guiders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import guidance

torch.set_num_threads(1)
SHAPES = [(1, 4, 8, 8), (3, 4, 16, 16), (6, 5, 700)]  # up to 4 samples run as plain numbers
TOLERANCE = {"float32": 3e-6, "bfloat16": 1.2e-2, "float16": 1.5e-3}


def pair(shape: tuple[int, ...], seed: int = 0, gap: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cond = rng.standard_normal(shape) + 0.2
    return cond.astype(np.float32), (cond + gap * rng.standard_normal(shape)).astype(np.float32)


def axes(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def wide(s: Any, x: np.ndarray) -> Any:
    return s if isinstance(s, float) else np.asarray(s).reshape(-1, *[1] * (x.ndim - 1))


def f64(x: Any) -> np.ndarray:
    return (x.double().numpy() if isinstance(x, torch.Tensor) else x).astype(np.float64)


def ref_cfg(c: np.ndarray, u: np.ndarray, s: Any) -> np.ndarray:
    return u + wide(s, u) * (c - u)


def ref_rescale(g: np.ndarray, c: np.ndarray, phi: float) -> np.ndarray:
    stds = [x.std(axis=axes(x), ddof=1, keepdims=True) for x in (c, g)]
    return phi * g * stds[0] / stds[1] + (1 - phi) * g


def ref_apg(
    c: np.ndarray,
    u: np.ndarray,
    s: Any,
    eta: float,
    limit: float,
    base: str,
    previous: Any = 0.0,
    momentum: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(guided, r)."""
    r = c - u + momentum * previous
    d = r
    if limit:
        norm = np.sqrt((r * r).sum(axis=axes(r), keepdims=True))
        d = r * np.minimum(1, limit / norm)
    unit = c / np.sqrt((c * c).sum(axis=axes(c), keepdims=True))
    parallel = (d * unit).sum(axis=axes(c), keepdims=True) * unit
    update = d - parallel + eta * parallel
    s = wide(s, c)
    return (c + (s - 1) * update if base == "cond" else u + s * update), r


def close(actual: Any, expected: np.ndarray, dtype: str = "float32") -> None:
    error = np.abs(f64(actual) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[dtype], error


def scales(batch: int) -> list[Any]:
    return [7.5, np.linspace(1.5, 9, batch), torch.linspace(1.5, 9, batch)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_cfg(shape: tuple[int, ...], phi: float) -> None:
    c, u = pair(shape)
    for s in scales(shape[0]):
        expected = ref_cfg(f64(c), f64(u), s)
        if phi:
            expected = ref_rescale(expected, f64(c), phi)
        close(guidance.cfg(c, u, s, rescale=phi), expected)
        out = torch.empty(shape)
        done = guidance.cfg(torch.from_numpy(c), torch.from_numpy(u), s, rescale=phi, out=out)
        assert done is out
        close(out, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes(dtype: str) -> None:
    c, u = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in pair((3, 4, 16, 16)))
    cc, uu = f64(c), f64(u)
    guided = ref_cfg(cc, uu, 5.0)
    close(guidance.cfg(c, u, 5.0), guided, dtype)
    close(guidance.cfg(c, u, 5.0, rescale=0.7), ref_rescale(guided, cc, 0.7), dtype)
    close(guidance.apg(c, u, 5.0, norm_threshold=4.0), ref_apg(cc, uu, 5.0, 0, 4, "cond")[0], dtype)
    r = torch.zeros_like(c)
    for k in range(3):
        first = r.clone()
        out = guidance.apg(c, u, 5.0, norm_threshold=4.0, average=r)
        expected, average = ref_apg(cc, uu, 5.0, 0, 4, "cond", f64(first), -0.5)
        close(r, average, dtype)
        expected, _ = ref_apg(cc, uu, 5.0, 0, 4, "cond", f64(first), -0.5)
        close(out, expected, dtype)
        assert k == 0 or not torch.equal(r, first)


@pytest.mark.parametrize("shape", SHAPES)
def test_rescale(shape: tuple[int, ...]) -> None:
    c, u = pair(shape)
    g = (3 * u - c).astype(np.float32)
    close(guidance.rescale(g, c, 0.7), ref_rescale(f64(g), f64(c), 0.7))
    guidance.rescale(g, c, 0.7, out=(copy := g.copy()))
    close(copy, ref_rescale(f64(g), f64(c), 0.7))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", ["cond", "uncond"])
@pytest.mark.parametrize(("eta", "limit"), [(0.0, 0.0), (0.0, 3.0), (0.4, 3.0), (1.0, 1e6)])
def test_apg(shape: tuple[int, ...], base: str, eta: float, limit: float) -> None:
    c, u = pair(shape)
    options = {"eta": eta, "norm_threshold": limit, "base": base}
    for s in scales(shape[0]):
        expected, _ = ref_apg(f64(c), f64(u), s, eta, limit, base)
        close(guidance.apg(c, u, s, **options), expected)
        r, previous = np.zeros_like(c), 0.0
        for seed in range(3):
            c2, u2 = pair(shape, seed)
            out = guidance.apg(c2, u2, s, momentum=-0.5, average=r, **options)
            expected, previous = ref_apg(f64(c2), f64(u2), s, eta, limit, base, previous, -0.5)
            close(out, expected)
            close(r, previous)


def test_apg_of_like_predictions() -> None:
    """The squared norm of a small difference comes out of large sums."""
    c, u = pair((2, 4, 64, 64), gap=0.01)
    expected, _ = ref_apg(f64(c), f64(u), 8.0, 0.0, 0.5, "cond")
    close(guidance.apg(c, u, 8.0, norm_threshold=0.5), expected)


def test_apg_of_nothing() -> None:
    zero = np.zeros((2, 3, 4), np.float32)
    np.testing.assert_array_equal(guidance.apg(zero, zero, 5.0, average=zero.copy()), zero)
    np.testing.assert_array_equal(guidance.apg(zero, zero, 5.0), zero)
    assert guidance.apg(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 5.0).size == 0


def test_pag_and_autoguidance() -> None:
    c, u = pair((3, 4, 8, 8))
    p = pair((3, 4, 8, 8), 5)[0]
    close(guidance.pag(c, u, p, 4.0, 2.5), f64(u) + 4.0 * f64(c - u) + 2.5 * (f64(c) - f64(p)))
    close(guidance.pag(c, None, p, 1.0, 2.5), f64(c) + 2.5 * (f64(c) - f64(p)))
    s = np.array([1.0, 2.0, 4.0])
    expected = f64(u) + wide(s, u) * (f64(c) - f64(u)) + 2.5 * (f64(c) - f64(p))
    close(guidance.pag(c, u, p, s, 2.5), expected)
    close(guidance.autoguidance(c, u, 2.0), f64(u) + 2.0 * (f64(c) - f64(u)))
    with pytest.raises(ValueError, match=r"guidance\.pag: argument 'uncond'"):
        guidance.pag(c, None, p, 2.0)


@pytest.mark.parametrize("batch", [3, 6])
def test_a_sample_alone_equals_itself_in_a_batch(batch: int) -> None:
    c, u = pair((batch, 4, 33, 7))
    s = np.linspace(2, 8, batch)
    rules = [
        lambda a, b, s: guidance.cfg(a, b, s),
        lambda a, b, s: guidance.cfg(a, b, s, rescale=0.7),
        lambda a, b, s: guidance.apg(a, b, s, norm_threshold=3.0, eta=0.3),
        lambda a, b, s: guidance.apg(a, b, s, norm_threshold=3.0, average=0.1 * a),
        lambda a, b, s: guidance.rescale(a, b, 0.7),
    ]
    for rule in rules:
        whole = rule(c, u, s)
        for i in range(batch):
            np.testing.assert_array_equal(
                rule(c[i : i + 1], u[i : i + 1], s[i : i + 1]), whole[i : i + 1]
            )


def test_similarity() -> None:
    c, u = pair((6, 40))
    expected = (f64(c) * f64(u)).sum(1) / np.sqrt((f64(c) ** 2).sum(1) * (f64(u) ** 2).sum(1))
    np.testing.assert_allclose(guidance.similarity(c, u), expected, rtol=1e-6)
    np.testing.assert_allclose(
        guidance.similarity(torch.from_numpy(c), torch.from_numpy(u)), expected, rtol=1e-6
    )


class TestDiffusers:
    """diffusers 0.42's guiders on the same outputs."""

    def arrays(self) -> list[torch.Tensor]:
        c, u = pair((3, 4, 16, 16))
        return [torch.from_numpy(x) for x in (c, u, pair((3, 4, 16, 16), 7)[0])]

    def test_classifier_free(self) -> None:
        guiders = pytest.importorskip("diffusers.guiders")
        from diffusers.hooks import LayerSkipConfig

        c, u, _ = self.arrays()
        for phi in (0.0, 0.7):
            theirs = guiders.ClassifierFreeGuidance(guidance_scale=6.0, guidance_rescale=phi)
            close(guidance.cfg(c, u, 6.0, rescale=phi), f64(theirs.forward(c, u).pred))
            theirs = guiders.AutoGuidance(
                guidance_scale=2.0,
                guidance_rescale=phi,
                auto_guidance_config=LayerSkipConfig(indices=[0], fqn="blocks"),
            )
            close(guidance.cfg(c, u, 2.0, rescale=phi), f64(theirs.forward(c, u).pred))

    def test_perturbed_attention(self) -> None:
        guiders = pytest.importorskip("diffusers.guiders")
        c, u, p = self.arrays()
        theirs = guiders.PerturbedAttentionGuidance(
            guidance_scale=5.0, perturbed_guidance_scale=2.8, perturbed_guidance_layers=[0]
        )
        theirs.set_state(5, None, None)
        theirs._num_inference_steps = None
        close(guidance.pag(c, u, p, 5.0, 2.8), f64(theirs.forward(c, u, p).pred))

    @pytest.mark.parametrize("original", [False, True])
    @pytest.mark.parametrize("momentum", [None, -0.5])
    def test_projected(self, original: bool, momentum: float | None) -> None:
        guiders = pytest.importorskip("diffusers.guiders")
        from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

        theirs = guiders.AdaptiveProjectedGuidance(
            guidance_scale=7.0,
            adaptive_projected_guidance_momentum=momentum,
            adaptive_projected_guidance_rescale=9.0,
            eta=0.25,
            use_original_formulation=original,
        )
        if momentum is not None:
            theirs.momentum_buffer = MomentumBuffer(momentum)
        average = None if momentum is None else torch.zeros(3, 4, 16, 16)
        for seed in range(3):
            c, u = (torch.from_numpy(x) for x in pair((3, 4, 16, 16), seed))
            ours = guidance.apg(
                c,
                u,
                8.0 if original else 7.0,
                eta=0.25,
                norm_threshold=9.0,
                momentum=momentum or 0.0,
                average=average,
                base="cond" if original else "uncond",
            )
            close(ours, f64(theirs.forward(c, u).pred))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c, u: guidance.cfg(c, u, np.ones(2)), ValueError, "expected 3 numbers"),
        (lambda c, u: guidance.cfg(c, u, np.ones((3, 1))), ValueError, "a number or shape"),
        (lambda c, u: guidance.cfg(c, u, "7"), TypeError, "number, got str"),
        (lambda c, u: guidance.cfg(c, u, float("nan")), ValueError, "'scale' expected a number"),
        (lambda c, u: guidance.cfg(c, u, 2.0, rescale=1.5), ValueError, "'rescale'"),
        (lambda c, u: guidance.cfg(c, u[:2], 2.0), ValueError, "lincomb"),
        (lambda c, u: guidance.apg(c, u, 2.0, eta=-0.1), ValueError, "'eta' expected a number in"),
        (lambda c, u: guidance.apg(c, u, 2.0, eta=1.1), ValueError, "'eta'"),
        (lambda c, u: guidance.apg(c, u, 2.0, norm_threshold=-1), ValueError, "'norm_threshold'"),
        (lambda c, u: guidance.apg(c, u, 2.0, momentum=1.0), ValueError, "'momentum'"),
        (lambda c, u: guidance.apg(c, u, 2.0, base="x"), ValueError, "'base' expected one of"),
        (lambda c, u: guidance.apg([1.0], u, 2.0), TypeError, "expected an array"),
        (lambda c, u: guidance.rescale(c, u, -1.0), ValueError, "'phi'"),
        (lambda c, u: guidance.CFG(2.0, interval=(3.0, 1.0)), ValueError, "low <= high"),
        (lambda c, u: guidance.CFG(2.0, interval=(0, 1), interval_in="x"), ValueError, "ratio"),
        (lambda c, u: guidance.CFG(2.0, rescale=2.0), ValueError, "CFG: argument 'rescale'"),
        (lambda c, u: guidance.PAG(2.0, perturbed_scale=-1), ValueError, "'perturbed_scale'"),
        (lambda c, u: guidance.APG(2.0, eta=3.0), ValueError, "APG: argument 'eta'"),
        (lambda c, u: guidance.APG(2.0, prediction_type="epsilon"), ValueError, "both"),
        (lambda c, u: guidance.AdaptiveGuidance(2.0, threshold=1.5), ValueError, "'threshold'"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    c, u = pair((3, 4, 8))
    with pytest.raises(error, match=text) as caught:
        call(c, u)
    assert any(
        name in str(caught.value) for name in ("guidance.", "guidance_weights: ", "lincomb: ")
    )


def test_is_part_of_the_package() -> None:
    assert px.guidance is guidance
