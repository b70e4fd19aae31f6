"""flow_ar: exact Gaussian flows on a pyramid of maps, whose results are known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pixleap as px
from pixleap.decode import flow_ar

SCHEDULE = px.solvers.NoiseSchedule.flow()
SCALES = [1, 2, (4, 4)]
SLOPE = 0.7  # of a map on the upsampled one before it
VARIANCE = (1.5, 0.4, 0.2)


def plan_of(steps: int, name: str = "euler") -> px.solvers.SolverPlan:
    sigmas = np.linspace(1, 0, steps + 1)
    return px.solvers.solver_plan(name, SCHEDULE, sigmas, prediction_type="flow_prediction")


def model(maps: list[Any], scale: int) -> Any:
    """Conditions (mean, variance of the map, D + 1 columns)."""
    if not maps:
        mean = np.full((model.batch, 1, 2), 0.5, np.float32)  # type: ignore[attr-defined]
    else:
        mean = np.float32(SLOPE) * np.asarray(maps[-1])
    variance = np.full((*mean.shape[:2], 1), VARIANCE[scale], np.float32)
    z = np.concatenate([mean, variance], 2)
    return torch.from_numpy(z) if maps and isinstance(maps[-1], torch.Tensor) else z


def head(x: Any, t: Any, z: Any) -> Any:
    """noise - data expected at x, for data N(z, variance)."""
    sigma = t[:, None, None] / 1000
    alpha, mean, variance = 1 - sigma, z[..., :-1], z[..., -1:]
    spread = alpha**2 * variance + sigma**2
    return ((sigma - alpha * variance) / spread) * (x - alpha * mean) - mean


def interpolated(x: np.ndarray, size: tuple[int, int], to: tuple[int, int], mode: str) -> Any:
    """torch's own."""
    batch, _, channels = x.shape
    image = torch.from_numpy(x).view(batch, *size, channels).permute(0, 3, 1, 2)
    options = {"align_corners": False} if mode == "bicubic" else {}
    up = F.interpolate(image, to, mode=mode, **options)  # type: ignore[arg-type]
    return up.permute(0, 2, 3, 1).reshape(batch, -1, channels).numpy()


def starts(batch: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, n * n, 2)).astype(np.float32) for n in (1, 2, 4)]


def exact(noise: list[np.ndarray]) -> list[np.ndarray]:
    """The flow's own result: mean + deviation * noise, scale by scale."""
    maps, size = [0.5 + np.sqrt(VARIANCE[0]) * noise[0].astype(np.float64)], 1
    for k, n in enumerate((2, 4), 1):
        up = interpolated(maps[-1], (size, size), (n, n), "bicubic")
        maps.append(SLOPE * up + np.sqrt(VARIANCE[k]) * noise[k])
        size = n
    return maps


def errors(name: str, steps: int) -> np.ndarray:
    """Largest error of every scale."""
    noise = starts(50)
    model.batch = 50  # type: ignore[attr-defined]
    result = flow_ar(model, head, SCALES, plan_of(steps, name), batch=50, channels=2, noise=noise)
    return np.array([np.abs(a - b).max() for a, b in zip(result.maps, exact(noise), strict=True)])


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2s", 2)])
def test_maps_converge_with_the_order_of_the_solver(solver: str, order: int) -> None:
    coarse, fine = errors(solver, 16), errors(solver, 64)
    assert (fine < 0.08).all() and (fine > 1e-5).all()
    slope = np.log2(coarse / fine) / 2
    assert (np.abs(slope - order) < 0.25).all(), slope


def test_law_of_every_scale() -> None:
    """Mean and covariance of each map, noise from the streams."""
    n = 20_000
    model.batch = n  # type: ignore[attr-defined]
    result = flow_ar(model, head, SCALES, plan_of(20, "heun"), batch=n, channels=2, seed=3)
    mean, cov, size = np.full(1, 0.5), np.eye(1) * VARIANCE[0], 1
    for k, side in enumerate((1, 2, 4)):
        if k:
            unit = np.eye(size * size)[:, :, None]
            up = interpolated(unit, (size, size), (side, side), "bicubic")[:, :, 0].T
            mean, size = SLOPE * up @ mean, side
            cov = SLOPE**2 * up @ cov @ up.T + np.eye(side * side) * VARIANCE[k]
        x = result.maps[k].astype(np.float64)
        var = np.diag(cov)
        for channel in range(2):
            values = x[:, :, channel]
            assert (np.abs(values.mean(0) - mean) < 4 * np.sqrt(var / n) + 2e-3).all()
            error = 4.5 * np.sqrt((np.outer(var, var) + cov**2) / n) + 4e-3
            assert (np.abs(np.cov(values.T) - cov) < error).all()
        cross = (x[:, :, 0] - mean).T @ (x[:, :, 1] - mean) / n
        assert (np.abs(cross) < 4.5 * np.sqrt(np.outer(var, var) / n)).all()
    assert (result.calls, result.head_calls) == (3, 3 * plan_of(20, "heun").evaluations)


@pytest.mark.parametrize("upsampling", ["bicubic", "nearest"])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_model_sees_the_upsampled_maps(upsampling: str, framework: str) -> None:
    scales = [(2, 1), (3, 4), (6, 5)]
    seen: list[list[np.ndarray]] = []

    def watch(maps: list[Any], scale: int) -> Any:
        assert len(maps) == scale
        seen.append([np.array(m) for m in maps])
        h, w = scales[scale]
        z = np.full((3, h * w, 2), 0.3, np.float32)
        z = np.concatenate([z, np.ones_like(z[..., :1])], 2)
        return z if framework == "numpy" else torch.from_numpy(z)

    like = None if framework == "numpy" else torch.empty(0)
    result = flow_ar(
        watch, head, scales, plan_of(3), batch=3, channels=2, like=like, upsampling=upsampling
    )
    maps = [np.asarray(m) for m in result.maps]
    assert type(result.maps[0]) is (np.ndarray if framework == "numpy" else torch.Tensor)
    for i in range(2):
        expected = interpolated(maps[i], scales[i], scales[i + 1], upsampling)
        np.testing.assert_allclose(seen[2][i], expected, atol=1e-6)
    np.testing.assert_array_equal(seen[1][0], seen[2][0])


def test_sample_alone_equals_the_one_in_the_batch() -> None:
    options: dict[str, Any] = {"channels": 2, "seed": 4}
    plans = [plan_of(4), plan_of(3, "heun"), plan_of(4, "euler_ancestral")]
    model.batch = 3  # type: ignore[attr-defined]
    whole = flow_ar(model, head, SCALES, plans, batch=3, **options)
    model.batch = 1  # type: ignore[attr-defined]
    alone = flow_ar(model, head, SCALES, plans, batch=1, first_sample=2, **options)
    for a, b in zip(whole.maps, alone.maps, strict=True):
        np.testing.assert_allclose(a[2:], b, rtol=1e-6, atol=1e-6)
        assert np.unique(np.round(a, 5)).size == a.size
    assert whole.head_calls == 4 + plans[1].evaluations + 4


def test_guidance_scale_of_every_scale() -> None:
    """Gaussians of one variance: guidance moves the mean by its scale."""

    def pair(maps: list[Any], scale: int) -> Any:
        shape = (2, (1, 4, 16)[scale], 2)
        variance = np.full((*shape[:2], 1), VARIANCE[scale], np.float32)
        cond, uncond = np.full(shape, 0.5, np.float32), np.full(shape, 0.1, np.float32)
        return np.concatenate([cond, variance], 2), np.concatenate([uncond, variance], 2)

    noise, scales = starts(2), [1.0, 2.0, 4.0]
    calls: list[int] = []

    def watched(x: Any, t: Any, z: Any) -> Any:
        calls.append(len(x))
        return head(x, t, z)

    result = flow_ar(
        pair, watched, SCALES, plan_of(40, "heun"), batch=2, channels=2, noise=noise,
        guidance_scale=scales,
    )  # fmt: skip
    for k, (x, w) in enumerate(zip(result.maps, scales, strict=True)):
        expected = 0.1 + 0.4 * w + np.sqrt(VARIANCE[k]) * noise[k]
        np.testing.assert_allclose(x, expected, atol=4e-3)
    count = plan_of(40, "heun").evaluations
    assert calls == [2] * count + [4] * 2 * count  # without guidance no second half


def test_random_transformer_in_torch() -> None:
    """A tiny causal transformer over scales and a head that mixes the map, as FlowAR's: prefixes do
    not depend on later scales, and the loop written out gives the same maps."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    embed, first = torch.nn.Linear(3, 16), torch.randn(1, 1, 16)
    mix = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    enter, leave = torch.nn.Linear(3 + 16 + 1, 16), torch.nn.Linear(16, 3)
    sizes = (1, 4, 9)

    def causal(maps: list[Any], scale: int) -> Any:
        rows = torch.cat([first.expand(2, 1, 16), *(embed(m) for m in maps)], 1)
        of = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))[: rows.shape[1]]
        return layer(rows, src_mask=of[:, None] < of)[:, -sizes[scale] :]

    def network(x: Any, t: Any, z: Any) -> Any:
        time = (t / 1000)[:, None, None].expand(*x.shape[:2], 1)
        return leave(mix(enter(torch.cat([x, z, time], 2))))

    options: dict[str, Any] = {"batch": 2, "channels": 3, "like": first}
    with torch.no_grad():
        noise = [torch.randn(2, n, 3) for n in sizes]
        result = flow_ar(causal, network, [1, 2, 3], plan_of(5), noise=noise, **options)
        short = flow_ar(causal, network, [1, 2], plan_of(5), noise=noise[:2], **options)
        maps: list[Any] = []
        inputs: list[Any] = []
        for k, n in enumerate((1, 2, 3)):
            if maps:
                before = maps[-1].numpy()
                inputs.append(torch.from_numpy(interpolated(before, (k, k), (n, n), "bicubic")))
            z, x = causal(inputs, k), noise[k]
            for i in range(5):
                x = x - network(x, torch.full((2,), 1000 * (1 - i / 5)), z) / 5
            maps.append(x)
    for a, b in zip(result.maps, maps, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5)
    for a, b in zip(result.maps, short.maps, strict=False):
        assert torch.equal(a, b)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scales": []}, ValueError, "'scales' expected at least one size"),
    ({"scales": [0]}, ValueError, "'scales' expected sizes >= 1, got 0"),
    ({"batch": 0}, ValueError, "'batch' expected an integer >= 1, got 0"),
    ({"channels": 0}, ValueError, "'channels' expected an integer >= 1, got 0"),
    ({"plan": [plan_of(2)] * 2}, ValueError, "'plan' expected one for each of 3 scales, got 2"),
    ({"guidance_scale": [1.0, 2.0]}, ValueError, "'guidance_scale' expected one for each of 3"),
    ({"guidance_scale": 2.0}, ValueError, r"'model' expected to return \(cond, uncond\)"),
    ({"upsampling": "area"}, ValueError, "'upsampling' expected one of bicubic, nearest"),
    ({"noise": starts(4)[:1]}, ValueError, "'noise' expected one for each of 3 scales, got 1"),
    ({"noise": starts(3)}, ValueError, r"'noise\[0\]' expected shape \(4, 1, 2\), got \(3, 1, 2\)"),
    (
        {"noise": [x.astype(np.float64) for x in starts(4)]},
        TypeError,
        r"'noise\[0\]' expected a float32 array, got float64",
    ),
    ({"model": lambda m, k: np.zeros((4, 2, 3), np.float32)}, ValueError, r"return \(4, 1, C\)"),
    ({"head": lambda x, t, z: x[:1]}, ValueError, r"head expected to return shape \(4, 1, 2\)"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], text: str) -> None:
    model.batch = 4  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {
        "model": model,
        "head": head,
        "scales": SCALES,
        "plan": plan_of(2),
        "batch": 4,
        "channels": 2,
        **change,
    }
    with pytest.raises(error, match=text):
        flow_ar(**arguments)
