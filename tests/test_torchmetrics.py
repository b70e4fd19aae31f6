"""FrechetDistance with torchmetrics and without."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pixleap as px  # noqa: E402

NAME = "pixleap.integrations.torchmetrics"
D = 6


@pytest.fixture(params=["with torchmetrics", "without"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "torchmetrics", None)
    else:
        pytest.importorskip("torchmetrics")
    sys.modules.pop(NAME, None)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def samples(n: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, D)) @ rng.standard_normal((D, D)) + 100 * rng.random(D)
    return torch.from_numpy(x.astype(np.float32))


def expected(real: torch.Tensor, fake: torch.Tensor) -> float:
    statistics = []
    for x in (real.double().numpy(), fake.double().numpy()):
        statistics += [x.mean(axis=0), np.cov(x, rowvar=False)]
    return px.metrics.frechet_distance(*statistics)


def test_is_a_metric_where_there_is_one(module: Any) -> None:
    metric = module.FrechetDistance(num_features=D)
    torchmetrics = sys.modules["torchmetrics"]
    assert torchmetrics is None or isinstance(metric, torchmetrics.Metric)


def test_batches_of_any_size_give_the_distance_of_all(module: Any) -> None:
    real, fake = samples(211, 1), samples(97, 2)
    metric = module.FrechetDistance(num_features=D)
    for batch in real.split([1, 64, 0, 100, 46]):
        metric.update(batch, real=True)
    for batch in fake.split(40):
        metric.update(batch, real=False)
    value = metric.compute()
    assert value.dtype == torch.float64 and value.shape == ()
    assert float(value) == pytest.approx(expected(real, fake), rel=1e-9)


def test_a_large_mean_does_not_swallow_the_covariance(module: Any) -> None:
    real, fake = samples(300, 3), samples(300, 4)
    plain = module.FrechetDistance(num_features=D)
    shifted = module.FrechetDistance(num_features=D)
    for metric, shift in ((plain, 0.0), (shifted, 1e6)):
        for batch in real.double().split(30):
            metric.update(batch + shift, real=True)
        for batch in fake.double().split(30):
            metric.update(batch + shift, real=False)
    assert float(shifted.compute()) == pytest.approx(float(plain.compute()), rel=1e-7)


def test_reset_keeps_the_real_side_on_demand(module: Any) -> None:
    real, fake, other = samples(50, 5), samples(50, 6), samples(40, 7)
    metric = module.FrechetDistance(num_features=D, reset_real_features=False)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    metric.reset()
    with pytest.raises(RuntimeError, match="two samples on either side, has 0 fake"):
        metric.compute()
    metric.update(other, real=False)
    assert float(metric.compute()) == pytest.approx(expected(real, other), rel=1e-9)

    metric = module.FrechetDistance(num_features=D)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    metric.reset()
    metric.update(other, real=False)
    with pytest.raises(RuntimeError, match="has 0 real"):
        metric.compute()


def test_forward_of_torchmetrics_accumulates_once() -> None:
    """`forward` resets in between; a real side that reset keeps must not be counted twice."""
    pytest.importorskip("torchmetrics")
    module = importlib.import_module(NAME)
    real, fake = samples(50, 8), samples(60, 9)
    metric = module.FrechetDistance(num_features=D, reset_real_features=False)
    metric.update(real, real=True)
    metric.update(fake[:30], real=False)
    batch = metric(fake[30:], real=False)
    assert float(batch) == pytest.approx(expected(real, fake[30:]), rel=1e-9)
    assert metric.real_moments[0] == 50
    assert float(metric.compute()) == pytest.approx(expected(real, fake), rel=1e-9)


def test_images_go_through_the_extractor(module: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    floats = torch.rand(24, 3, 28, 28, generator=generator)
    metric = module.FrechetDistance(px.metrics.features.digits(), normalize=True)
    metric.update(floats[:12], real=True)
    metric.update(floats[12:], real=False)
    features = torch.from_numpy(px.metrics.features.digits()((floats * 255).byte()))
    assert float(metric.compute()) == pytest.approx(
        expected(features[:12], features[12:]), rel=1e-6, abs=1e-9
    )


def test_bad_input(module: Any) -> None:
    with pytest.raises(ValueError, match="num_features"):
        module.FrechetDistance()
    with pytest.raises(ValueError, match="num_features"):
        module.FrechetDistance(lambda images: images)
    metric = module.FrechetDistance(num_features=D)
    with pytest.raises(ValueError, match=r"shape \(B, 6\), got \(3, 5\)"):
        metric.update(torch.zeros(3, 5), real=True)
    metric.update(torch.full((3, D), torch.nan), real=True)
    metric.update(samples(3, 0), real=False)
    with pytest.raises(ValueError, match="NaN"):
        metric.compute()


WORKER = """
import sys
if sys.argv[3] == "without":
    sys.modules["torchmetrics"] = None
import torch
from pixleap.integrations.torchmetrics import FrechetDistance
torch.distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
rank = int(sys.argv[2])
x = torch.arange(400.0).sin().view(2, 100, 2)
metric = FrechetDistance(num_features=2)
if rank == 0:  # the other process has no real samples at all
    metric.update(x[0], real=True)
metric.update(x[1][rank::2], real=False)
print(float(metric.compute()), int(metric.fake_moments[0]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("base", ["with torchmetrics", "without"])
def test_two_processes(base: str, tmp_path: Path) -> None:
    if base != "without":
        pytest.importorskip("torchmetrics")
    root = str(Path(px.__file__).resolve().parents[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "rendezvous"), str(rank), base],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        for rank in range(2)
    ]
    lines = [worker.communicate(timeout=120)[0].split() for worker in workers]
    x = torch.arange(400.0).sin().view(2, 100, 2)
    for value, count in lines:
        assert float(value) == pytest.approx(expected(x[0], x[1]), rel=1e-9)
        assert count == "50"  # each keeps its own samples
