"""One small run of each family of loops, of inputs that `move` puts on a device: what
test_cuda_families.py runs on a GPU, and without one on tests/fake_cuda.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import pixleap as px
from pixleap import decode, guidance, metrics, solvers
from pixleap.caching import DeltaCache, FirstBlockCache, Forecast, apply_cache
from pixleap.decode.flow_block import Guidance
from pixleap.models import TarFlow, load_digits_dit

Move = Callable[[Any], Any]
VP, FLOW = solvers.NoiseSchedule.vp(), solvers.NoiseSchedule.flow()
VOCABULARY, LENGTH = 5, 6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(module: nn.Module, move: Move) -> nn.Module:
    """A copy with its parameters and buffers on the device."""
    module = copy.deepcopy(module).requires_grad_(False)
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is not None:
                    held[name] = move(value.detach())
                    held[name]._is_param = held is part._parameters  # as nn.Parameter knows its own
    return module


def smooth(x: Any, t: Any) -> Any:
    return 0.9 * x + 0.3 * torch.sin(x + torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(
        -1, *[1] * (x.dim() - 1)
    ) / 1000)  # fmt: skip


def plan_of(name: str, schedule: Any = VP, steps: int = 6, **options: Any) -> solvers.SolverPlan:
    kind = "flow_prediction" if schedule is FLOW else "epsilon"
    grid = "linspace" if schedule is FLOW else "karras"
    return solvers.solver_plan(
        name, schedule, grid, steps=steps, prediction_type=kind, **options
    )  # fmt: skip


def solve(name: str, **options: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        plan = plan_of(name, **options)
        return solvers.Solver(plan).sample(smooth, move(3 * normal(2, 4, 6)))

    return run


def parallel(name: str, **options: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        x = move(3 * normal(2, 6))
        return solvers.parallel_sample(plan_of(name), smooth, x, **options).samples

    return run


def adaptive(move: Move) -> Any:
    return solvers.AdaptiveSolver(VP, rtol=0.05, atol=0.05).sample(smooth, move(normal(2, 6)))


def langevin(move: Move) -> Any:
    pc = solvers.PredictorCorrector(solvers.NoiseSchedule.ve(), [9.0, 3.0, 1.0], snr=0.1, seed=3)
    return pc.sample(smooth, move(normal(2, 6)))


def chains(move: Move) -> Any:
    levels = np.array([2.0, 1.0, 0.5])

    def posterior(x: Any) -> Any:
        return -torch.stack([(x * x).sum(1) / v for v in (4.0, 1.0, 0.25)], 1)

    chain = solvers.DenoisingMCMC(solvers.NoiseSchedule.ve(), levels, posterior, seed=3)
    x, level = chain.step(smooth, move(normal(3, 6)), np.array([0, 1, 2]))
    return chain.denoise(smooth, x, level, "heun", steps=4)


def particles(move: Move) -> Any:
    sampler = solvers.FeynmanKacSampler(
        VP, [9.0, 3.0, 1.0, 0.1], exponents=[0.6, 0.6], threshold=0.9, particles=4, seed=5
    )
    return sampler.sample(lambda x, t: [smooth(x, t), 0.5 * smooth(x, t)], move(3 * normal(8, 6)))


def editor(move: Move) -> Any:
    edit = solvers.ConsistentEditor(VP, "leading", steps=3, seed=7)
    xs, xt = edit.start(move(normal(2, 5)))
    for t in edit.timesteps:
        xs, xt = edit.step(smooth(xs, t), 0.5 * smooth(xt, t))
    return xt


def starts(move: Move) -> Any:
    point = VP.at_time(999)
    teleport = solvers.GaussianTeleport.of_data(normal(40, 6).double().numpy(), 2)
    x = move(normal(2, 6))
    far = teleport(50 * x, VP.at_sigma(50.0), VP.at_sigma(1.0))
    return far, solvers.pfgmpp_noise(x, 3.0, D=64, seed=1), solvers.one_more_step(
        smooth, VP, point, x, seed=3
    )  # fmt: skip


def guided(make: Callable[[], Any]) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        solver = solvers.Solver(plan_of("dpmpp_2m"), guidance=make())
        calls = {"cond": smooth, "uncond": lambda x, t: 0.5 * smooth(x, t)}
        return guidance.sample(solver, calls, move(3 * normal(3, 4, 6)))

    return run


def stream(move: Move) -> Any:
    flow = guidance.StreamBatch(plan_of("lcm", steps=3), guidance=guidance.CFG(3.0))
    results = []
    flow.start(move(3 * normal(2, 6)))
    for k in range(4):
        out = smooth(flow.input, flow.timesteps)
        done = flow.step(out, 0.5 * out, x=move(3 * normal(2, 6, seed=k + 1)))
        if done is not None:
            results.append(done + 0)
    return results


def logits_of(tokens: Any) -> Any:
    """Of the token after each of (B, L): a smooth function of it and its place."""
    n = torch.arange(VOCABULARY, device=tokens.device)
    place = torch.arange(tokens.shape[1], device=tokens.device)[None, :, None]
    return torch.sin(1.7 * (tokens[..., None] + 1.0) * (n + 1) + 0.3 * place)


def raster_model(tokens: Any, start: int) -> Any:
    begin = torch.zeros((tokens.shape[0], 1), dtype=torch.int64, device=tokens.device)
    return logits_of(torch.cat((begin, tokens), 1))[:, start:].float().contiguous()


def raster(decoder: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        prompt = move(torch.tensor([[1], [2], [3]]))
        return decode.raster(
            raster_model, prompt, LENGTH, decoder=decoder, seed=2, top_k=4
        ).tokens  # fmt: skip

    return run


def masked(decoder: Any) -> Callable[[Move], Any]:
    def model(tokens: Any, times: Any) -> Any:
        return logits_of(tokens).float().contiguous()

    def run(move: Move) -> Any:
        tokens = move(torch.full((3, LENGTH), VOCABULARY))
        return decode.masked_diffusion(model, tokens, VOCABULARY, decoder=decoder, seed=1).tokens

    return run


def mar(decoder: Any) -> Callable[[Move], Any]:
    def model(tokens: Any, known: Any) -> Any:
        return (tokens + known[..., None]).float()

    def head(x: Any, t: Any, z: Any) -> Any:
        return 0.5 * x + 0.1 * z[:, : x.shape[1]] + t[:, None] / 5000

    def run(move: Move) -> Any:
        plan = solvers.solver_plan("ddpm", VP, timesteps=np.linspace(960, 0, 6))
        tokens = move(torch.zeros(2, LENGTH, 3))
        return decode.mar(model, head, tokens, plan, steps=3, decoder=decoder, seed=4).tokens

    return run


def flow_ar(move: Move) -> Any:
    like = move(torch.zeros(1))

    def model(maps: list[Any], scale: int) -> Any:
        if not maps:
            return torch.zeros(2, 1, 3, device=like.device)
        return 0.5 * maps[-1]

    def head(x: Any, t: Any, z: Any) -> Any:
        return x - z + t[:, None, None] / 5000

    plan = plan_of("euler", FLOW, 4)
    return decode.flow_ar(model, head, [1, 2, (4, 4)], plan, batch=2, channels=3, like=like).maps


def distilled(move: Move) -> Any:
    codebook = normal(VOCABULARY, 2).double().numpy()
    teacher = decode.DistilledTeacher(raster_model, decode.NoiseMapping(codebook))
    noise = move(normal(3, LENGTH, 2).double())
    return decode.distilled(
        teacher, noise, splits=(0, 3), teacher=teacher, refine_from=4
    ).tokens  # fmt: skip


def diffusion(move: Move) -> Any:
    model: Any = moved(load_digits_dit(), move)
    return decode.diffusion(
        model, move(torch.tensor([1, 7])), steps=2, guidance_scale=2.0, seed=1
    )  # fmt: skip


class Chain(nn.Module):
    """Blocks for `apply_cache`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
        for k, block in enumerate(self.blocks):
            block.weight = nn.Parameter(normal(8, 8, seed=k) / 3)  # type: ignore[assignment]

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def cached(config: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        module = moved(Chain(), move)
        with torch.no_grad(), apply_cache(module, config):
            return [module(move(normal(2, 3, 8) + 0.05 * k)) for k in range(5)]

    return run


def densely(solver: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        def f(x: Any, z: Any) -> Any:
            return torch.cat((z[:, :1], 0.3 * torch.sin(x[:, :-1]) + z[:, 1:]), 1)

        system = decode.DenseSystem(f)
        return decode.solve_triangular(system, move(normal(2, 7, 3)), solver).x

    return run


def metric(name: str, **options: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        x, y = move(normal(60, 8)), move(normal(50, 8, seed=1) + 0.3)
        return np.asarray(getattr(metrics, name)(x, y, **options), np.float64)

    return run


def one_set(move: Move) -> Any:
    x = move(normal(60, 8))
    own = metrics.FeatureMoments(8)
    own.update(x)
    score = metrics.inception_score(torch.softmax(x, 1), splits=2)
    return [np.asarray(v) for v in (score, metrics.vendi_score(x), own.mean, own.covariance)]


def random_flow(move: Move) -> Any:
    torch.manual_seed(0)
    model = TarFlow(1, 8, 2, 16, 2, 2, head_dim=8, num_classes=3).eval()
    for block in model.blocks:
        nn.init.normal_(block.proj_out.weight, std=0.04)
    return moved(model, move)


def flow(solver: Any, **options: Any) -> Callable[[Move], Any]:
    def run(move: Move) -> Any:
        decoder = decode.FlowDecoder(random_flow(move))
        z, labels = move(normal(3, 16, 4)), move(torch.tensor([0, 2, -1]))
        return decoder(z, labels, solver=solver, **options).images

    return run


def flow_sample(move: Move) -> Any:
    model = random_flow(move)
    images = model.sample(2, seed=3, solver=decode.Segments(1e-3, 5), guidance=1.0)
    plan = model.decoder().calibrate(2, rounds=1, linear=True)
    # Windows follow the clock, so this one's bits are the machine's.
    plan.solver("linear").of_block(0, 2).solve(
        model.decoder().system(0, None, Guidance(), 2), move(normal(2, 16, 4))
    )  # fmt: skip
    measured = model.metrics(images, tol=1e-2)
    return images, [b.crm for b in measured.blocks]


# Runs, and how many waits for the device each takes; None: it decides on the host, by design.
FAMILIES: dict[str, tuple[Callable[[Move], Any], int | None]] = {
    **{f"solver {n}": (solve(n), 0) for n in ("dpmpp_2m", "ddpm", "heun", "unipc", "dpmpp_2m_sde")},
    "parallel_sample": (parallel("ddim", window=3), 13),
    "parallel_sample, Anderson": (parallel("ddim", anderson=2), 35),
    "AdaptiveSolver": (adaptive, 24),
    "PredictorCorrector": (langevin, 4),
    "DenoisingMCMC": (chains, 1),
    "FeynmanKacSampler": (particles, 9),
    "ConsistentEditor": (editor, 0),
    "starts": (starts, 1),
    "CFG": (guided(lambda: guidance.CFG(3.0)), 0),
    "CFG, rescaled": (guided(lambda: guidance.CFG(3.0, rescale=0.7)), 0),
    "APG": (guided(lambda: guidance.APG(3.0, momentum=-0.5, norm_threshold=1.0)), 0),
    "AdaptiveGuidance": (guided(lambda: guidance.AdaptiveGuidance(3.0)), 1),
    "StreamBatch": (stream, 0),
    "raster": (raster(None), 5),
    "raster, Frontier": (raster(decode.Frontier(window=3, init="zero")), 5),
    "raster, Speculative": (raster(decode.Speculative(raster_model, 2)), 2),
    "raster, SpeculativeJacobi": (raster(decode.SpeculativeJacobi(window=3)), 10),
    "masked_diffusion, FirstHitting": (masked(decode.FirstHitting()), 1),
    "masked_diffusion, Ancestral": (masked(decode.Ancestral(3)), 7),
    "masked_diffusion, MaskGIT": (masked(decode.MaskGIT(3)), 10),
    "mar": (mar(None), 1),
    "mar, speculative": (mar(decode.SpeculativeDenoising(steps=2)), 22),
    "flow_ar": (flow_ar, 0),
    "distilled": (distilled, 23),
    "diffusion": (diffusion, 2),
    **{
        f"DenseSystem, {type(s).__name__}": (densely(s), most)
        for s, most in ((decode.Frontier(), 12), (decode.Jacobi(), 14), (decode.GSJacobi(2), 24))
    },
    "flow, Segments": (flow(decode.Segments(1e-3, 5)), 22),
    "flow, Segments, guidance": (flow(decode.Segments(0.0, 15), guidance=1.5), 30),
    "flow, Frontier": (flow(decode.Frontier(1e-3), guidance=1.5, attn_temp=0.5), 26),
    "flow, GSJacobi": (flow(decode.GSJacobi(3)), 76),
    "TarFlow.sample, calibrate, metrics": (flow_sample, None),
    "Forecast": (cached(Forecast(interval=2)), 0),
    "DeltaCache": (cached(DeltaCache(blocks=2, boundary=2)), 0),
    "FirstBlockCache": (cached(FirstBlockCache(threshold=0.5)), 4),
    **{
        n: (metric(n), None)
        for n in (
            "frechet_distance_from_features", "kernel_distance", "cmmd", "prdc", "mind",
            "sliced_wasserstein",
        )
    },
    "sinkhorn_divergence": (metric("sinkhorn_divergence", reg=1.0), None),
    "one set of features": (one_set, None),
}  # fmt: skip


def plain(move: Any) -> Any:
    return move


def run(name: str, move: Move = plain) -> Any:
    """The family's output."""
    with torch.no_grad():
        return FAMILIES[name][0](move)


__all__ = ["FAMILIES", "px", "run"]
