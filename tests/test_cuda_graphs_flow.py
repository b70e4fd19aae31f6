"""GS-Jacobi decoding of flows as CUDA graphs: captured sweeps, one flag per sweep on the host. What
needs no GPU runs on the CPU with tests/graph_emulation.py, and in the build that emulates CUDA's
threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graph_emulation import HostReads, emulated_graphs, names, same_bits  # noqa: E402

import pixleap as px  # noqa: E402
from pixleap import _native  # noqa: E402
from pixleap.decode import (  # noqa: E402
    FlowDecoder,
    Frontier,
    GSJacobi,
    Jacobi,
    Segments,
    Sequential,
    flow_rows,
)
from pixleap.decode.flow_segments import SegmentSweeps  # noqa: E402
from pixleap.models import TarFlow  # noqa: E402

LABELS = torch.tensor([0, 2, -1])
GUIDED = [
    {},
    {"guidance": 1.5},
    {"guidance": 1.5, "attn_temp": 0.5, "guide_what": "b", "annealed_guidance": True},
]


def random_flow(std: float = 0.04, **changes: Any) -> TarFlow:
    """16 tokens; contracts faster than it has tokens."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"in_channels": 1, "img_size": 8, "patch_size": 2, "channels": 16}
    config |= {"num_blocks": 2, "layers_per_block": 2, "head_dim": 8, "num_classes": 3}
    model = TarFlow(**(config | changes)).eval().requires_grad_(False)
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=std)
        if block.class_embed is not None:
            torch.nn.init.normal_(block.class_embed)
    return model


def noise(model: TarFlow, batch: int = 3, seed: int = 1) -> torch.Tensor:
    return px.ops.random_normal((batch, *model.var.shape), seed=seed, like=model.var)


@pytest.mark.parametrize("options", GUIDED)
@pytest.mark.parametrize("window", [1, 4, 15, "auto"])
def test_segments_give_the_sequential_result(window: Any, options: dict[str, Any]) -> None:
    model = random_flow()
    decoder, z = FlowDecoder(model), noise(model)
    exact = decoder(z, LABELS, solver=Sequential(), **options)
    result = decoder(z, LABELS, solver=Segments(1e-4, window), **options)
    assert float((result.images - exact.images).abs().max()) < 1e-4
    assert bool(result.converged.all())
    for block in result.blocks:
        assert len(block.residuals) == block.sweeps and block.finite
    if window == 1:
        assert same_bits(result.images, exact.images)
    if window == 15:
        assert sum(result.sweeps) < 15 * 2, "no sweep saved"


@pytest.mark.parametrize("window", [8, 15])
def test_tolerance_zero_has_the_bits_of_all_sweeps(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed point that the flag found, with sweeps saved, is that of every sweep made."""
    model = random_flow(0.003)
    decoder, z = FlowDecoder(model), noise(model)
    found = decoder(z, LABELS, solver=Segments(0.0, window))
    monkeypatch.setattr("pixleap.decode.flow_segments.bound_of", lambda *_: -1.0)
    every = decoder(z, LABELS, solver=Segments(0.0, window))
    assert every.sweeps == [15, 15] and sum(found.sweeps) < 30
    assert same_bits(found.images, every.images)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_sample_has_the_same_bits_in_every_batch(guidance: float) -> None:
    """Though samples stay until the last one has converged: what has converged is frozen."""
    model = random_flow()
    z, solver = noise(model), Segments(1e-3, 15)
    decoder = FlowDecoder(model)
    batch = decoder(z, LABELS, solver=solver, guidance=guidance)
    sweeps = []
    for i in range(3):
        alone = decoder(z[i : i + 1], LABELS[i : i + 1], solver=solver, guidance=guidance)
        assert same_bits(alone.images, batch.images[i : i + 1])
        sweeps.append(alone.sweeps)
    assert batch.sweeps == np.max(sweeps, axis=0).tolist() != np.min(sweeps, axis=0).tolist()


@pytest.mark.parametrize("options", GUIDED)
@pytest.mark.parametrize("nvp", [True, False])
def test_captured_inversion_equals_the_plain_one(nvp: bool, options: dict[str, Any]) -> None:
    """One graph for every segment of every block, recorded with other noise, labels and strength of
    guidance than it is replayed with."""
    model = random_flow(nvp=nvp)
    first, second = noise(model), noise(model, seed=2)
    solver = Segments(1e-3, 5)
    more = options | ({"guidance": 3.0} if options else {})
    expected = FlowDecoder(model)(second, LABELS.flip(0), solver=solver, **more)
    with emulated_graphs() as backend:
        decoder = FlowDecoder(model)
        decoder(first, LABELS, solver=solver, **options)
        captured = len(backend.graphs)
        assert captured == 2 * 3
        result = decoder(second, LABELS.flip(0), solver=solver, **more)
    assert len(backend.graphs) == captured, "a graph of the first run did not serve the second"
    assert backend.replays >= sum(result.sweeps)
    assert same_bits(result.images, expected.images)
    assert result.sweeps == expected.sweeps and result.residuals == expected.residuals


def test_a_captured_sweep_equals_a_called_one() -> None:
    """All that it writes: tokens, flags, moves and caches."""

    def run(system: Any, sweeps: SegmentSweeps, z: torch.Tensor, call: Any) -> list[torch.Tensor]:
        sweeps.load(system, z, "z", 1e-3)
        sweeps.done.zero_()
        for tensor in (*sweeps.caches[0], *sweeps.caches[1], sweeps.moves):
            tensor.zero_()
        call(lambda: sweeps.sweep(system.packed, 1, 6))
        state = [sweeps.x, sweeps.done, sweeps.all_done, sweeps.moves, sweeps.count]
        return [t.clone() for t in (*state, *sweeps.caches[0], *sweeps.caches[1])]

    from pixleap.decode.flow_block import Guidance

    model = random_flow()
    with emulated_graphs() as backend:
        decoder = FlowDecoder(model)
        system = decoder.system(0, LABELS, Guidance(1.5), 3)
        assert system.sweeps is not None
        sweeps = system.sweeps(5)
        run(system, sweeps, noise(model), lambda f: f())
        graph: list[Any] = []
        run(system, sweeps, noise(model), lambda f: graph.append(backend.capture(f)))
        called = run(system, sweeps, noise(model, seed=2), lambda f: f())
        replayed = run(system, sweeps, noise(model, seed=2), lambda f: graph[0].replay())
    assert all(same_bits(a, b) for a, b in zip(called, replayed, strict=True))


def test_the_host_reads_one_flag_per_sweep() -> None:
    model = random_flow()
    z, decoder = noise(model), FlowDecoder(model)
    for window in (1, 5, 15):
        solver = Segments(1e-3, window)
        decoder(z, LABELS, solver=solver)  # whatever is made once
        system = decoder.system(0, LABELS, decoder_guidance(), 3)
        with HostReads() as host:
            result = solver.solve(system, z)
        segments = -(-15 // window)
        assert len(host.reads) <= result.sweeps - segments + 1, names(host.reads)
        assert set(names(host.reads)) <= {"tolist"}
        if window == 1:
            assert len(host.reads) == 1  # the report
    with HostReads() as host:
        whole = decoder(z, LABELS, solver=Segments(1e-3, 5))
    # and of each call the checks of z and labels
    assert len(host.reads) <= sum(whole.sweeps) + 4, names(host.reads)


def decoder_guidance() -> Any:
    from pixleap.decode.flow_block import Guidance

    return Guidance()


def test_a_sweep_that_reads_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = SegmentSweeps.sweep

    def reading(self: SegmentSweeps, *args: Any) -> None:
        sweep(self, *args)
        if bool(self.done.all()):
            self.count.zero_()

    monkeypatch.setattr(SegmentSweeps, "sweep", reading)
    model = random_flow()
    with emulated_graphs(), pytest.raises(RuntimeError, match="cannot be captured"):
        FlowDecoder(model)(noise(model), LABELS, solver=Segments(0.0, 5))


def test_graphs_of_shapes_used_last_are_kept() -> None:
    model = random_flow()
    with emulated_graphs() as backend:
        decoder = FlowDecoder(model)
        for batch in (1, 2, 3, 1, 2, 3):
            decoder(noise(model, batch), solver=Segments(1e-3, 5))
        captured = len(backend.graphs)
        assert captured == 3 * 6
        for batch in (4, 5, 6):
            decoder(noise(model, batch), solver=Segments(1e-3, 5))
        assert len(decoder._sweeps) == FlowDecoder.SHAPES
        decoder(noise(model, 1), solver=Segments(1e-3, 5))
        assert len(backend.graphs) > captured


def test_bad_arguments() -> None:
    model = random_flow()
    for options, name in (
        ({"window": 0}, "window"),
        ({"tol": -1.0}, "tol"),
        ({"margin": 0}, "mar"),
    ):
        with pytest.raises(ValueError, match=f"Segments: argument '{name}"):
            Segments(**options)
    with pytest.raises(ValueError, match="one entry for each of the 2 blocks"):
        FlowDecoder(model)(noise(model), solver=Segments(window=[4]))
    dense = px.decode.DenseSystem(lambda x, z: z)
    with pytest.raises(TypeError, match="'system' expected a block of a FlowDecoder, got Dense"):
        Segments().solve(dense, np.zeros((1, 2, 1), np.float32))
    with pytest.raises(ValueError, match="'z' expected a tensor on cpu, where the model is"):
        FlowDecoder(model)(noise(model).to("meta"))


def test_empty_batch_and_one_token() -> None:
    model = random_flow()
    assert FlowDecoder(model)(noise(model, 0), solver=Segments()).images.shape == (0, 1, 8, 8)
    one = random_flow(img_size=2)
    z = noise(one)
    assert same_bits(FlowDecoder(one)(z, solver=Segments()).images, FlowDecoder(one)(z).images)


def test_values_that_overflow_are_an_error() -> None:
    model = random_flow()
    for block in model.blocks:
        block.proj_out.weight.mul_(1e4)
    with pytest.raises(ValueError, match="values that are not finite"):
        FlowDecoder(model)(noise(model), solver=Segments(window=5))


@pytest.mark.parametrize(
    "solver",
    [Sequential(), Frontier(), Frontier(window=4, draft_dtype="int8"), Jacobi(), GSJacobi(3)],
)
@pytest.mark.parametrize("options", GUIDED)
def test_other_solvers_as_on_a_device(
    solver: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's calls alone, which a device has too: the same bits, and one read per sweep."""
    model = random_flow()
    z = noise(model)
    expected = FlowDecoder(model)(z, LABELS, solver=solver, **options)
    monkeypatch.setattr(flow_rows, "on_host", lambda x: False)
    decoder = FlowDecoder(model)
    with HostReads() as host:
        result = decoder(z, LABELS, solver=solver, **options)
    assert same_bits(result.images, expected.images) and result.sweeps == expected.sweeps
    sweeps = sum(result.sweeps) + sum(b.draft.sweeps for b in result.blocks if b.draft)
    per_sweep = 2 if isinstance(solver, GSJacobi) else 1  # its bound is of moves after the clamp
    assert names(host.reads).get("cpu", 0) <= per_sweep * sweeps
    plain = names(host.reads)
    assert plain.get("numpy", 0) <= plain["cpu"], plain


@pytest.mark.cuda_emulated
@pytest.mark.parametrize("options", GUIDED)
def test_cuda_kernels_invert_a_flow(options: dict[str, Any]) -> None:
    """Captured sweeps whose native ops run CUDA's kernels, thread by thread."""
    model = random_flow(img_size=6)
    z, labels = noise(model, 2), LABELS[:2]
    exact = FlowDecoder(model)(z, labels, solver=Sequential(), **options).images
    for solver in (Segments(1e-6, 4), Segments(0.0, 3), Frontier(1e-6)):
        _native.emulate_cuda("forward")
        before = _native.emulated_launches()
        with emulated_graphs() as backend:
            result = FlowDecoder(model)(z, labels, solver=solver, **options)
        assert _native.emulated_launches() > before
        assert bool(backend.replays) == isinstance(solver, Segments)
        _native.emulate_cuda("off")
        assert float((result.images - exact).abs().max()) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("options", GUIDED)
def test_on_a_gpu(options: dict[str, Any]) -> None:
    model = random_flow()
    z = noise(model)
    exact = FlowDecoder(model)(z, LABELS, solver=Sequential(), **options).images
    decoder, z, labels = FlowDecoder(model.cuda()), z.cuda(), LABELS.cuda()
    for solver in (None, Segments(1e-6, 5), Segments(0.0, 15), Frontier(1e-6), Sequential()):
        for _ in range(3):  # called, captured, replayed
            result = decoder(z, labels, solver=solver, **options)
        off = float((result.images.cpu() - exact).abs().max())
        assert off < (1e-3 if solver is None else 1e-5), off
    assert len(decoder._sweeps[next(iter(decoder._sweeps))].graphs) > 0
    plan = decoder.calibrate(3, rounds=1, linear=True)
    guessed = decoder(z, labels, solver=plan.solver("linear"), **options).images.cpu()
    assert float((guessed - exact).abs().max()) < 1e-2
    assert torch.isfinite(model.sample(2, seed=3)).all()
