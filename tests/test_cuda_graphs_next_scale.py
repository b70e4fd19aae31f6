"""Next-scale decoding as captured CUDA graphs: one per scale, replayed on the same memory, without
a read on the host. Emulated (tests/graph_emulation.py), in the emulation of CUDA's threads, and on
a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_emulation import HostReads, emulated_graphs, names
from next_scale_models import random_var
from torch import Tensor

from pixleap import _native
from pixleap.decode import NextScaleDecoder, SpeculativeDecoder
from pixleap.decode.next_scale import Sampling
from pixleap.models import VAR

LABELS = torch.tensor([0, 4, -1, 2, 2, 1])
OTHER = torch.tensor([3, -1, 1, 0, 4, 4])
SCALES = 4
OPTIONS: list[dict[str, Any]] = [
    {"cfg": 1.5, "top_k": 20, "top_p": 0.9},
    {"cfg": 0.0, "temperature": 0.8, "noise_dtype": "float64"},
    {"cfg": 2.0, "more_smooth": True},
    {"temperature": 0.0},
]


def assert_same(a: Any, b: Any) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True))
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [{}, {"shared_aln": True, "share_phi": 1, "l2_norm": False}])
def test_images_of_replayed_scales_have_the_bits_of_plain_calls(
    make: dict[str, Any], options: dict[str, Any]
) -> None:
    """Captured with some labels, seeds and samples, replayed with others."""
    model = random_var(**make)
    runs = [(LABELS, 3, 0), (OTHER, -(2**40), 5), (LABELS, 2**62, 1), (OTHER, 3, 2**33)]

    def image(decoder: NextScaleDecoder, run: tuple[Tensor, int, int]) -> Any:
        seen: list[Tensor] = []
        tokens, f_hat = decoder.tokens(
            run[0], progress=lambda _, f: seen.append(f.clone()), seed=run[1], first_sample=run[2],
            **options,
        )  # fmt: skip
        return [*tokens, *seen], f_hat

    plain = NextScaleDecoder(model)
    expected = [image(plain, run) for run in runs]
    with emulated_graphs() as backend:
        decoder = NextScaleDecoder(model)
        for i, run in enumerate(runs):
            with HostReads() as host:
                got = image(decoder, run)
            # Of the labels, which are checked before anything is launched.
            assert set(names(host.reads)) <= {"__int__"} and len(host.reads) <= 1
            assert_same(got, expected[i])
            # The modulation has its own graph, and its first call is that of the second image.
            assert backend.replays == (0, SCALES, 2 * SCALES + 1, 3 * SCALES + 2)[i]
            assert len(backend.graphs) == (0, SCALES, SCALES + 1, SCALES + 1)[i]


def test_results_are_the_callers_own() -> None:
    model = random_var()
    plain = NextScaleDecoder(model)
    expected = [plain.tokens(LABELS, seed=i) for i in range(4)]
    with emulated_graphs():
        decoder = NextScaleDecoder(model)
        got = [decoder.tokens(LABELS, seed=i) for i in range(4)]
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)


def test_batch_sizes_and_laws_have_their_own_graphs() -> None:
    plain, model = NextScaleDecoder(random_var()), random_var()
    laws: list[dict[str, Any]] = [{"cfg": 1.0}, {"cfg": 2.0}, {"cfg": 0.0}]
    runs = [(OTHER[:n], {"seed": i, **law}) for n in (1, 6, 1) for i in range(2) for law in laws]
    expected = [plain.tokens(labels, **options) for labels, options in runs]
    with emulated_graphs() as backend:
        decoder = NextScaleDecoder(model)
        for (labels, options), image in zip(runs, expected, strict=True):
            assert_same(decoder.tokens(labels, **options), image)
        # Unguided batches of 6 start only twice: no graph of their modulation.
        assert len(backend.graphs) == 3 + 6 * SCALES
        for size in (0, 2, 3):
            assert decoder.tokens(LABELS[:size])[1].shape[0] == size
        assert len(decoder._batches) == 4


def test_edits_are_captured_too() -> None:
    model = random_var()
    plain = NextScaleDecoder(model)
    mask = torch.zeros(len(LABELS), 4, 4, dtype=torch.bool)
    mask[1:, :, 2:] = True

    def edit(decoder: NextScaleDecoder, seed: int) -> Any:
        return decoder.edit(
            given[seed], mask.roll(seed, 0), LABELS, seed=seed, coverage=0.6, more_smooth=seed > 4
        )

    given = [plain.tokens(OTHER, seed=9 + seed)[0] for seed in range(8)]
    expected = [edit(plain, seed) for seed in range(8)]
    with emulated_graphs() as backend:
        decoder = NextScaleDecoder(model)
        for seed in range(8):
            assert_same(edit(decoder, seed), expected[seed])
        assert backend.replays > 0


def test_a_draw_that_reads_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Sampling.draw

    def reads(self: Sampling, logits: Tensor, *args: Any) -> Tensor:
        assert float(logits.max()) < 1e30
        return draw(self, logits, *args)

    monkeypatch.setattr(Sampling, "draw", reads)
    with emulated_graphs():
        decoder = NextScaleDecoder(random_var())
        decoder.tokens(LABELS)
        with pytest.raises(RuntimeError, match=r"graphs: step .*'scale', 0, 0.*__float__"):
            decoder.tokens(LABELS)


SPECULATIVE = [
    {"rule": "rejection", "mode": "token", "drafted": 1},
    {"rule": "rejection", "mode": "joint", "drafted": 3},
    {"rule": "coupled", "drafted": 2},
]


@pytest.mark.parametrize("how", SPECULATIVE, ids=str)
def test_speculation_reads_one_tensor_per_chunk(how: dict[str, Any]) -> None:
    """Captured and replayed chunks give what plain calls give, and as many acceptances."""
    model = random_var()
    near = random_var()
    with torch.no_grad():
        near.head.weight.add_(torch.randn_like(near.head.weight) * 0.05)
    models = NextScaleDecoder(model), NextScaleDecoder(near)
    plain = SpeculativeDecoder(*models, **how)
    runs = [(labels, seed) for seed in range(6) for labels in (LABELS, OTHER[:2])]
    expected = [plain.tokens(labels, seed=seed, top_k=9) for labels, seed in runs]
    with emulated_graphs() as backend:
        decoder = SpeculativeDecoder(*models, **how)
        for (labels, seed), want in zip(runs, expected, strict=True):
            with HostReads() as host:
                got = decoder.tokens(labels, seed=seed, top_k=9)
            # One per chunk, and the labels' check by each model.
            assert names(host.reads).get("tolist", 0) == got.target_passes
            assert set(names(host.reads)) <= {"tolist", "__int__"}
            assert names(host.reads).get("__int__", 0) <= 2
            assert_same((got.tokens, got.f_hat), (want.tokens, want.f_hat))
            for name in ("drafted", "accepted", "target_passes", "draft_passes"):
                assert getattr(got, name) == getattr(want, name), name
        assert backend.replays > 20
    passes = sum(w.target_passes for w in expected)
    assert len(runs) < passes < SCALES * len(runs)  # some drafts were accepted, some were not


def cuda_decodes_as_the_cpu(model: VAR, on_device: VAR) -> None:
    cpu, cuda = NextScaleDecoder(model), NextScaleDecoder(on_device)
    for seed in range(3):
        a, b = cpu.tokens(LABELS, seed=seed), cuda.tokens(LABELS, seed=seed)
        assert all(torch.equal(x, y.cpu()) for x, y in zip(a[0], b[0], strict=True))
        torch.testing.assert_close(b[1].cpu(), a[1], atol=1e-4, rtol=1e-4)


@pytest.mark.cuda_emulated
@pytest.mark.parametrize("captured", [False, True])
def test_cuda_kernels_draw_the_tokens_of_the_cpu(captured: bool) -> None:
    model = random_var(sides=(1, 2, 3))
    expected = [NextScaleDecoder(model).tokens(LABELS[:2], seed=s, top_p=0.9) for s in range(3)]
    with emulated_graphs() as backend:
        if not captured:
            backend.active = False
        _native.emulate_cuda("forward")
        before = _native.emulated_launches()
        decoder = NextScaleDecoder(model)
        for seed, (tokens, f_hat) in enumerate(expected):
            got = decoder.tokens(LABELS[:2], seed=seed, top_p=0.9)
            assert all(torch.equal(a, b) for a, b in zip(tokens, got[0], strict=True))
            torch.testing.assert_close(got[1], f_hat, atol=1e-4, rtol=1e-4)
        assert _native.emulated_launches() > before
        assert bool(backend.replays) == captured


@pytest.mark.cuda
def test_a_gpu_draws_the_tokens_of_the_cpu() -> None:
    model = random_var()
    cuda_decodes_as_the_cpu(model, random_var().to("cuda"))
