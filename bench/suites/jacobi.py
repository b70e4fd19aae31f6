"""Parallel decoding of triangular systems: trained flows, a large random one, token models.

Peers are plain torch: the official loop of TarFlow and the official GS-Jacobi sampler
(`bench/peers`), on the same weights and noise in the same process. Models: the embedded flow (49
tokens), one of 28 x 28 digits (196 tokens, `bench/models`; trained for 600 steps, which is enough
to time it and not for good digits), and one block of 8 layers
of width 1024 with random weights (256 tokens), whose log-scales deviate by 0.1, as those of the
trained flow's easiest block do. Counts of sweeps and evaluations do not depend on
the machine; times do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peers import gs_jacobi_official, strategy_lists, tarflow_official
from torch import Tensor

import pixleap as px
from pixleap.cli.demo import digit_score
from pixleap.cli.pictures import strip
from pixleap.decode import (
    FlowDecoder,
    Frontier,
    Jacobi,
    RowAbove,
    Sequential,
    SpeculativeJacobi,
    raster,
)
from pixleap.models import TarFlow, load_tarflow
from pixleap.models.raster_ar import NativeRasterAR, load_raster_ar

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "flow_tolerance.png"
# As published: segments for the tough block, which is the first in sampling order.
STRATEGIES = {49: "[3-7-14-10]", 196: "[3-7-28-10]", 256: "[0-8-32-10]"}
TOLERANCES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


@cache
def flow(tokens: int) -> tuple[TarFlow, FlowDecoder]:
    if tokens == 49:
        model = load_tarflow()
    elif tokens == 196:
        model = load_tarflow(ROOT / "bench" / "models" / "tarflow_digits_28.npz")
    else:
        torch.manual_seed(0)
        model = TarFlow(3, 32, 2, 1024, 1, 8).eval().requires_grad_(False)
        torch.nn.init.normal_(model.blocks[0].proj_out.weight, std=0.003)
    return model, FlowDecoder(model)


def noise(model: TarFlow, batch: int, seed: int = 3) -> tuple[Tensor, Tensor | None]:
    z = px.ops.random_normal((batch, *model.var.shape), seed=seed, like=model.var)
    return z, torch.arange(batch) % 10 if model.num_classes else None


def off(images: Tensor, exact: Tensor) -> float:
    return float((images - exact).abs().max())


def clock(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, Any]]:
    """Median seconds of interleaved calls and the result of the last one."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, f in functions.items():
            time.sleep(0.02)  # threads of the call before may still spin
            start = time.perf_counter()
            results[name] = f()
            times[name].append(time.perf_counter() - start)
    return {name: (statistics.median(t), results[name]) for name, t in times.items()}


def exactness() -> list[str]:
    lines = [
        "Largest error of a pixel over 16 samples against the sequential loop in float64: of the",
        "median sample and of the worst. Sequential in float32 shows what rounding alone does.",
        "`Frontier` with whole blocks in the window; GS-Jacobi as published, and with no clamp.",
        "",
        "| tokens | guidance | solver | sweeps | evaluations per token | median | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens, guidance in ((49, 0.0), (49, 2.0), (196, 0.0), (196, 2.0)):
        model, decoder = flow(tokens)
        z, labels = noise(model, 16)
        options: dict[str, Any] = {"guidance": guidance}
        exact = deepcopy(model).double().reverse(z.double(), labels, **options)
        blocks = len(model.blocks)

        def row(name: str, images: Tensor, sweeps: Any, evaluations: Any) -> None:
            errors = (images - exact).abs().flatten(1).amax(dim=1)  # noqa: B023
            share = sum(evaluations) / (blocks * (tokens - 1))  # noqa: B023
            lines.append(
                f"| {tokens} | {guidance} | {name} | {sum(sweeps)} | {share:.1f} "  # noqa: B023
                f"| {float(errors.median()):.1e} | {float(errors.max()):.1e} |"
            )

        solvers = {"sequential": Sequential()}
        solvers |= {f"Frontier, tol {t:g}": Frontier(t, tokens) for t in (1e-2, 1e-3, 1e-4, 1e-5)}
        for name, solver in solvers.items():
            r = decoder(z, labels, solver=solver, **options)
            row(name, r.images, r.sweeps, r.evaluations)
        lists = strategy_lists(STRATEGIES[tokens], blocks)
        for clamp in (3.0, None):
            o = gs_jacobi_official(
                model, z, labels, num_gs=lists[0], max_jacobi=lists[1], guess=lists[2],
                clamp=clamp, guide_what="ac", **options,
            )  # fmt: skip
            name = f"official {STRATEGIES[tokens]}" + ("" if clamp else ", no clamp")
            row(name, o.images, [sum(s) for s in o.sweeps], o.evaluations)
    return [*lines, ""]


def one_sample() -> list[str]:
    lines = [
        "One sample, seconds; official strategies and pixleap's calibrated windows. Error: against",
        "pixleap's sequential loop.",
        "",
        "| tokens | method | seconds | official loop / it | error |",
        "|---|---|---|---|---|",
    ]
    for tokens, rounds in ((49, 5), (196, 3), (256, 1)):
        model, decoder = flow(tokens)
        z, labels = noise(model, 1)
        plan = decoder.calibrate(1, tol=1e-3)
        lists = strategy_lists(STRATEGIES[tokens], len(model.blocks))

        def official(
            model: TarFlow = model, z: Tensor = z, labels: Any = labels, lists: Any = lists
        ) -> Tensor:
            return gs_jacobi_official(
                model, z, labels, num_gs=lists[0], max_jacobi=lists[1], guess=lists[2]
            ).images

        methods: dict[str, Callable[[], Tensor]] = {
            "official loop": lambda m=model, z=z, y=labels: tarflow_official(m, z, y),
            f"official GS-Jacobi {STRATEGIES[tokens]}": official,
        }
        solvers = {"sequential": Sequential()}
        for tol in (1e-2, 1e-4):
            solvers[f"Frontier, tol {tol:g}"] = plan.solver(tol=tol)
        for name, solver in solvers.items():
            methods[f"pixleap {name}"] = lambda d=decoder, z=z, y=labels, s=solver: (
                d(z, y, solver=s).images
            )
        timed = clock(methods, rounds)
        base, exact = timed["official loop"][0], timed["pixleap sequential"][1]
        for name, (seconds, images) in timed.items():
            lines.append(
                f"| {tokens} | {name} | {seconds:.3f} | {base / seconds:.1f}x "
                f"| {off(images, exact):.1e} |"
            )
    return [*lines, ""]


def windows() -> list[str]:
    lines = [
        "Seconds per batch of fixed windows, of `auto` as it is and after `calibrate` (tol 1e-3).",
        "Share: seconds of the best fixed window (1 is sequential) over those of the row.",
        "",
        "| tokens | batch | 1 | 4 | 8 | 16 | 32 | 64 | all | auto | share | calibrated | share |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for tokens in (49, 196):
        model, decoder = flow(tokens)
        for batch in (1, 8, 32):
            z, labels = noise(model, batch)
            plan = decoder.calibrate(batch, tol=1e-3)
            decoder.plans.clear()
            fixed = [w for w in (1, 4, 8, 16, 32, 64) if w < tokens] + [tokens - 1]
            solvers = {f"w{w}": Frontier(1e-3, window=w) for w in fixed}
            solvers |= {"auto": Frontier(1e-3), "calibrated": plan.solver()}
            timed = clock(
                {n: (lambda s=s: decoder(z, labels, solver=s)) for n, s in solvers.items()},  # noqa: B023
                3,
            )
            seconds = {w: timed[f"w{w}"][0] for w in fixed}
            best = min(seconds.values())
            cells = [
                f"{timed[f'w{w}'][0]:.3f}" if f"w{w}" in timed else ""
                for w in (1, 4, 8, 16, 32, 64)
            ]
            cells.append(f"{timed[f'w{tokens - 1}'][0]:.3f}")
            for name in ("auto", "calibrated"):
                cells += [f"{timed[name][0]:.3f}", f"{best / timed[name][0]:.2f}"]
            lines.append(f"| {tokens} | {batch} | {' | '.join(cells)} |")
    return [*lines, ""]


def sweep_cost() -> list[str]:
    """Of the large block, half-way through its tokens."""
    model, _ = flow(256)
    z, _ = noise(model, 1)
    lines = [
        "Milliseconds of a sweep of n tokens on 128 cached ones: width 1024, 8 layers; torch: one",
        "token of the official loop with its cache, weights of the same type.",
        "",
        "| weights | torch, 1 | 1 | 8 | 32 | 64 | 32 tokens / 1 | torch / pixleap, 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    block = model.blocks[0]
    from pixleap.decode.flow_block import Guidance

    for weights in ("float32", "bfloat16", "int8"):
        decoder = FlowDecoder(model, weights)
        system = decoder.system(0, None, Guidance(), 1)
        system.begin(z, "z")
        sample = torch.zeros(1, dtype=torch.int64).numpy()

        def sweep(n: int, system: Any = system, sample: Any = sample) -> Callable[[], Any]:
            return lambda: system.evaluate(sample, sample + 129, sample + 129 + n)

        calls: dict[str, Callable[[], Any]] = {str(n): sweep(n) for n in (1, 8, 32, 64)}
        peer = block.to(torch.bfloat16) if weights == "bfloat16" else block
        if weights != "int8":
            cached = peer.new_cache()
            dtype = peer.proj_in.weight.dtype
            x, position = z[:, :1].to(dtype), peer.pos_embed[:1]
            heads, width = 1024 // 64, 64
            for keys, values in cached:
                keys.append(torch.randn(1, heads, 128, width, dtype=dtype))
                values.append(torch.randn(1, heads, 128, width, dtype=dtype))

            def step(peer: Any = peer, cached: Any = cached, x: Any = x, p: Any = position) -> Any:
                with torch.no_grad():
                    out = peer.step(x, p, None, cached, 1.0)
                for keys, values in cached:
                    del keys[1:], values[1:]
                return out

            calls["torch"] = step
        ms = {n: 1e3 * seconds for n, (seconds, _) in clock(calls, 9).items()}
        block.to(torch.float32)
        theirs = f"{ms['torch']:.1f}" if "torch" in ms else ""
        ratio = f"{ms['torch'] / ms['1']:.2f}x" if "torch" in ms else ""
        cells = [f"{ms[str(n)]:.1f}" for n in (1, 8, 32, 64)]
        lines.append(
            f"| {weights} | {theirs} | {' | '.join(cells)} | {ms['32'] / ms['1']:.2f} | {ratio} |"
        )
    return [*lines, ""]


def mixed_precision() -> list[str]:
    lines = [
        "Evaluations per token of the float32 solution, block by block in sampling order, 8",
        "samples, moves up to 1e-2: alone, and after a solution with weights in low precision.",
        "",
        "| tokens | draft | block 1 | block 2 | block 3 | block 4 | draft's evaluations |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens in (49, 196):
        model, decoder = flow(tokens)
        z, labels = noise(model, 8)
        for draft in (None, "bfloat16", "int8"):
            solver = Frontier(1e-2, tokens, margin=1, draft_dtype=draft, draft_tol=3e-3)
            r = decoder(z, labels, solver=solver)
            cells = [f"{e / (tokens - 1):.2f}" for e in r.evaluations]
            spent = [b.draft.evaluations.mean() for b in r.blocks if b.draft is not None]
            total = f"{sum(spent) / (len(cells) * (tokens - 1)):.2f}" if spent else ""
            lines.append(f"| {tokens} | {draft or 'none'} | {' | '.join(cells)} | {total} |")
    return [*lines, ""]


def per_sample() -> list[str]:
    lines = [
        "Evaluations per token of 8 samples when each has its own frontier, when all wait for the",
        "slowest, and of Jacobi sweeps that end when the whole batch has converged.",
        "",
        "| tokens | guidance | window | tol | per sample | together | saved | Jacobi | saved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tokens in (49, 196):
        model, decoder = flow(tokens)
        z, labels = noise(model, 8)
        for guidance in (0.0, 2.0):
            for window, tol in ((16, 1e-3), (tokens - 1, 1e-2), (tokens - 1, 1e-3)):
                counts = []
                for solver in (
                    Frontier(tol, window),
                    Frontier(tol, window, per_sample=False),
                    Jacobi(tol / 32, per_sample=False),
                ):
                    r = decoder(z, labels, solver=solver, guidance=guidance)
                    counts.append(sum(r.evaluations) / (len(r.blocks) * (tokens - 1)))
                one, all_, jacobi = counts
                lines.append(
                    f"| {tokens} | {guidance} | {window} | {tol:g} | {one:.2f} | {all_:.2f} "
                    f"| {1 - one / all_:.0%} | {jacobi:.2f} | {1 - one / jacobi:.0%} |"
                )
    return [*lines, ""]


def quality() -> list[str]:
    """Frechet distance of the embedded flow against tolerance, and the picture."""
    lines = [
        "200 digits of the embedded flow, guidance 1, noise times 0.8, denoised: accuracy, Frechet",
        "distance of the classifier's features to held-out digits (docs/flow_tolerance.png).",
        "",
        "| solver | sweeps | evaluations per token | error | accuracy | Frechet distance |",
        "|---|---|---|---|---|---|",
    ]
    model, decoder = flow(49)
    labels = torch.arange(10).repeat_interleave(20)
    z = 0.8 * px.ops.random_normal((200, *model.var.shape), seed=11, like=model.var)
    solvers = {"sequential": Sequential()}
    solvers |= {f"tol {tol:g}": Frontier(tol, 48) for tol in TOLERANCES}
    shown: list[Tensor] = []
    exact = torch.empty(0)
    for name, solver in solvers.items():
        r = decoder(z, labels, solver=solver, guidance=1.0)
        exact = exact if shown else r.images
        images = model.denoise(r.images, labels, model.noise_std).clamp(-1, 1)
        accuracy, distance = digit_score(images, labels)
        share = sum(r.evaluations) / (len(r.blocks) * 48)
        lines.append(
            f"| {name} | {sum(r.sweeps)} | {share:.1f} | {off(r.images, exact):.1e} "
            f"| {100 * accuracy:.1f} % | {distance:.2f} |"
        )
        shown.append(images[::20] / 2 + 0.5)
    strip(PICTURE, shown, list(solvers))
    return [*lines, ""]


def tokens_in_order() -> list[str]:
    """A raster-order token model: passes, which do not depend on the machine, and seconds."""
    model = load_raster_ar(ROOT / "bench" / "models" / "raster_digits.npz")
    lines = [
        "Raster-order digits of 64 tokens, one at a time: mean passes of 100, milliseconds.",
        "Equal: digits that are the loop's, token for token, with its noise.",
        "",
        "| decoder | passes | loop / passes | ms | loop / time | equal |",
        "|---|---|---|---|---|---|",
    ]
    prompt = torch.zeros((1, 0), dtype=torch.int64)
    native = NativeRasterAR(model)
    decoders: dict[str, Any] = {"loop": None}
    decoders |= {f"Frontier, window {w}": Frontier(window=w) for w in (8, 16, 64)}
    decoders["Frontier, window 16, row above"] = Frontier(window=16, init=RowAbove(8))
    for coupling in ("none", "maximal"):
        name = f"speculative Jacobi, coupling {coupling}"
        decoders[name] = SpeculativeJacobi(16, coupling)
    results: dict[str, list[Any]] = {name: [] for name in decoders}
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for seed in range(100):
        conditioned = native.conditioned(torch.tensor([seed % 10]))
        for name, decoder in decoders.items():
            start = time.perf_counter()
            results[name].append(raster(conditioned, prompt, 64, seed=seed, decoder=decoder))
            times[name].append(time.perf_counter() - start)
    loop = 1e3 * statistics.median(times["loop"])
    for name, runs in results.items():
        passes = sum(r.passes for r in runs) / len(runs)
        ms = 1e3 * statistics.median(times[name])
        equal = sum(
            bool(torch.equal(r.tokens, e.tokens))
            for r, e in zip(runs, results["loop"], strict=True)
        )
        same = "" if name.startswith("speculative") else f"{equal} of 100"
        lines.append(
            f"| {name} | {passes:.1f} | {64 / passes:.1f}x | {ms:.1f} | {loop / ms:.1f}x | {same} |"
        )
    return [*lines, ""]


def table(threads: int) -> list[str]:
    lines = [f"### parallel decoding, {threads} thread{'s' if threads > 1 else ''}", ""]
    parts = [one_sample, windows, sweep_cost]
    if threads == 1:
        parts += [tokens_in_order, exactness, per_sample, mixed_precision, quality]
    for part in parts:
        start = time.perf_counter()
        lines += part()
        print("\n".join(lines[-24:]), f"\n({part.__name__}: {time.perf_counter() - start:.0f} s)")
    return lines
