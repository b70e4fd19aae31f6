"""`pixleap demo`: a hundred digits from a VAR model and from a TarFlow, by the plain PyTorch loops
and by pixleap, with pictures and a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import pixleap as px

from ..decode import (
    CollaborativeDecoder,
    FlowDecoder,
    FlowResult,
    Frontier,
    NextScaleDecoder,
    Sequential,
    SpeculativeDecoder,
)
from ..models import load_classifier, load_tarflow, load_var, load_var_draft
from ..reference.philox import uniform_open, words
from . import pictures

LABELS = torch.arange(100) // 10
VAR_OPTIONS: dict[str, Any] = {"cfg": 1.5, "top_k": 64}
FLOW_OPTIONS: dict[str, Any] = {"guidance": 1.0}
FLOW_TEMPERATURE = 0.8  # of the noise
FLOW_TOLERANCE = 1e-3
DRAFTED = 2  # scales before each check
SPECULATIVE = f"VAR, pixleap speculative ({DRAFTED} scales drafted)"
CODE_SCALES = 3  # scales that the large model draws in collaborative decoding
REPEATS = 5


@dataclass
class Row:
    """One line of the table."""

    name: str
    digits: int
    seconds: float
    plain_seconds: float
    images: Tensor
    difference: str
    sweeps: str = ""
    accuracy: float = 0.0
    frechet: float = 0.0

    def cells(self) -> list[str]:
        scores = [f"{100 * self.accuracy:.0f} %", f"{self.frechet:.2f}"]
        return [
            self.name,
            str(self.digits),
            f"{1e3 * self.seconds:.1f} ms",
            f"{self.plain_seconds / self.seconds:.2f}x",
            self.sweeps,
            self.difference,
            *(scores if self.digits > 1 else ["", ""]),
        ]


COLUMNS = [
    "sampler", "digits", "time", "speed-up", "sweeps per block", "max difference",
    "accuracy", "Frechet distance",
]  # fmt: skip


def interleaved(*samplers: Callable[[], Any]) -> tuple[list[float], list[Any]]:
    """Median seconds of each, taken in turns, and the last results."""
    times: list[list[float]] = [[] for _ in samplers]
    results: list[Any] = [None] * len(samplers)
    for _ in range(REPEATS):
        for i, sample in enumerate(samplers):
            start = time.perf_counter()
            results[i] = sample()
            times[i].append(time.perf_counter() - start)
    return [statistics.median(t) for t in times], results


def gumbel_noise(model: Any, samples: int, seed: int) -> list[Tensor]:
    """The noise that `ops.sample_tokens` draws, scale by scale, for the plain loop to share."""
    noise = []
    for scale, side in enumerate(model.patch_nums):
        u = uniform_open(words(samples * side * side * model.V, seed, scale))
        noise.append(torch.from_numpy(-np.log(-np.log(u))).float())
    return [
        n.view(samples, side * side, model.V)
        for n, side in zip(noise, model.patch_nums, strict=True)
    ]


def run_var(seed: int, tick: Callable[[str], None]) -> tuple[list[Row], list[Tensor]]:
    """Plain loop and native decoders on the same noise, 100 digits at once, then one; and ten
    digits after each scale."""
    model = load_var()
    decoder, small = NextScaleDecoder(model), NextScaleDecoder(load_var_draft())
    natives: dict[str, Callable[..., Tensor]] = {
        "VAR, pixleap": decoder,
        SPECULATIVE: SpeculativeDecoder(decoder, small, rule="coupled", drafted=DRAFTED),
        f"VAR, pixleap CoDe ({CODE_SCALES} of {len(model.patch_nums)} scales by the large model)":
            CollaborativeDecoder(decoder, small, CODE_SCALES),
    }  # fmt: skip
    rows = []
    for labels in (LABELS, LABELS[30:31]):
        tick(f"VAR, {len(labels)} at a time")
        noise = gumbel_noise(model, len(labels), seed)

        def plain(labels: Tensor = labels, noise: list[Tensor] = noise) -> Tensor:
            draw = lambda logits, scale: (logits + noise[scale]).argmax(-1)  # noqa: E731
            return model.autoregressive_infer_cfg(len(labels), labels, draw=draw, **VAR_OPTIONS)

        if len(labels) > 1:  # drafting is for few images
            names = [name for name in natives if name != SPECULATIVE]
        else:
            names = list(natives)
        calls = [
            lambda f=natives[n], labels=labels: f(labels, seed=seed, **VAR_OPTIONS) for n in names
        ]
        seconds, (a, *images) = interleaved(plain, *calls)
        rows.append(Row("VAR, plain PyTorch loop", len(labels), seconds[0], seconds[0], a, ""))
        for name, t, b in zip(names, seconds[1:], images, strict=True):
            same = int(((a - b).abs().amax(dim=(1, 2, 3)) < 1e-3).sum())
            equal = f"{float((a - b).abs().max()):.1e} ({same} of {len(labels)} equal)"
            difference = "" if "CoDe" in name else equal  # another model's digits
            rows.append(Row(name, len(labels), t, seconds[0], b, difference))
    scales: list[Tensor] = []

    def keep(scale: int, f_hat: Tensor) -> None:
        scales.append(decoder.images(f_hat.clone()))

    decoder.tokens(LABELS[::10], seed=seed, progress=keep, **VAR_OPTIONS)
    return rows, scales


def run_flow(seed: int, tick: Callable[[str], None]) -> tuple[list[Row], FlowResult]:
    """Plain loop, native loop and parallel decoding on the same noise."""
    model = load_tarflow()
    decoder = FlowDecoder(model)
    shape = (len(LABELS), model.num_patches, model.var.shape[1])
    noise = FLOW_TEMPERATURE * px.ops.random_normal(shape, seed=seed, like=model.var)
    rows: list[Row] = []
    for pick in (slice(0, 100), slice(30, 31)):
        z, labels = noise[pick], LABELS[pick]
        tick(f"TarFlow, {len(labels)} at a time")
        decoder.calibrate(len(z), tol=FLOW_TOLERANCE, **FLOW_OPTIONS)
        solvers = {"sequential": Sequential(), "parallel": Frontier(FLOW_TOLERANCE)}

        def plain(z: Tensor = z, labels: Tensor = labels) -> Tensor:
            return model.reverse(z, labels, **FLOW_OPTIONS)

        natives = [
            lambda z=z, labels=labels, s=s: decoder(z, labels, solver=s, **FLOW_OPTIONS)
            for s in solvers.values()
        ]
        seconds, (a, *results) = interleaved(plain, *natives)
        images = [a, *(r.images for r in results)]
        finished = [
            model.denoise(x, labels, model.noise_std).clamp(-1, 1) / 2 + 0.5 for x in images
        ]
        rows.append(
            Row("TarFlow, plain PyTorch loop", len(labels), seconds[0], seconds[0], finished[0], "")
        )
        for name, t, r, x in zip(solvers, seconds[1:], results, finished[1:], strict=True):
            rows.append(
                Row(
                    f"TarFlow, pixleap {name}", len(labels), t, seconds[0], x,
                    f"{float((r.images - a).abs().max()):.1e}",
                    " ".join(map(str, r.sweeps)),
                )
            )  # fmt: skip
    tick("TarFlow, trace")
    ten = torch.arange(10) * 10
    solver = Frontier(window=model.num_patches)
    trace = decoder(noise[ten], LABELS[ten], solver=solver, return_sequence=True, **FLOW_OPTIONS)
    return rows, trace


def held_out_moments(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the classifier's features of held-out digits at 14 or 28 pixels."""
    path = files("pixleap.models") / "weights" / "digits_reference.npz"
    with np.load(str(path)) as moments:
        return moments[f"mu_{size}"], moments[f"sigma_{size}"]


@torch.no_grad()
def digit_score(images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Classifier accuracy and Frechet distance to the held-out digits, images in [-1, 1]."""
    classifier = load_classifier()
    features = classifier.features(images).double().numpy()
    moments = features.mean(axis=0), np.cov(features, rowvar=False)
    distance = px.metrics.frechet_distance(*moments, *held_out_moments(images.shape[-1]))
    return float((classifier(images).argmax(1) == labels).double().mean()), distance


def score(rows: list[Row]) -> None:
    """Classifier accuracy and Frechet distance to the held-out digits, for the batches."""
    for row in rows:
        if row.digits < 2:
            continue
        row.accuracy, row.frechet = digit_score(row.images * 2 - 1, LABELS)


def markdown(rows: list[Row], seed: int) -> str:
    """The table as it is printed and kept."""
    info = px.info()
    lines = [
        f"`pixleap demo --seed {seed}`: {info['num_threads']} threads, ISA {info['isa']}, torch "
        f"{torch.__version__}, pixleap {info['version']}; medians of {REPEATS} interleaved runs.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def run(out: Path, seed: int = 0) -> None:
    """Writes pictures and table.md into `out` and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(px.num_threads())
    columns = (TextColumn("{task.description:34}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("loading", total=7)

        def tick(text: str) -> None:
            progress.update(task, description=text, advance=1)

        var_rows, scales = run_var(seed, tick)
        flow_rows, trace = run_flow(seed, tick)
        tick("scores and pictures")
        rows = [*var_rows, *flow_rows]
        score(rows)
        pictures.side_by_side(out / "var.png", var_rows[0].images, var_rows[1].images)
        names = [f"{n} x {n}" for n in load_var().patch_nums]
        pictures.strip(out / "var_scales.png", scales, names)
        pictures.side_by_side(out / "tarflow.png", flow_rows[0].images, flow_rows[2].images)
        pictures.trace(out / "tarflow_trace.png", trace)
        pictures.residuals(out / "tarflow_residuals.png", trace)
        progress.update(task, completed=7, description="done")
    table = markdown(rows, seed)
    (out / "table.md").write_text(table)
    print(table)
    print(f"Pictures: {', '.join(sorted(p.name for p in out.glob('*.png')))} in {out}/")
