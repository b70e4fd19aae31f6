"""The peers of the flow benchmarks do what the published samplers do, with their faults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

from peers import gs_jacobi_official, strategy_lists, tarflow_official  # noqa: E402

from pixleap.models import TarFlow, load_tarflow  # noqa: E402


def random_flow(side: int, blocks: int = 3, **changes: Any) -> TarFlow:
    """Blocks over side x side tokens of one number; normal noise stays within about +-4."""
    torch.manual_seed(side)
    model = TarFlow(1, side, 1, 32, blocks, 2, **{"head_dim": 16, "num_classes": 4} | changes)
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.02)
        if block.class_embed is not None:
            torch.nn.init.normal_(block.class_embed)
    return model.eval().requires_grad_(False)


def noise(model: TarFlow, batch: int, seed: int = 0, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, *model.var.shape, generator=generator)


LABELS = torch.tensor([0, 3, 1])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance": 0.8},
    {"guidance": 0.7, "guide_what": "a", "attn_temp": 1.3},
    {"guidance": 0.7, "guide_what": "c", "annealed_guidance": True},
    {"guidance": 0.6, "annealed_guidance": True, "attn_temp": 0.7},
]


def apple(options: dict[str, Any]) -> dict[str, Any]:
    """The shift is called c by one repository and b by the other."""
    what = options.get("guide_what", "ac").replace("c", "b")
    return {**options, "guide_what": what}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sequential_mode_is_the_loop_bit_for_bit(options: dict[str, Any]) -> None:
    model = random_flow(4)
    z = noise(model, 3)
    plain = tarflow_official(model, z, LABELS, **apple(options))
    assert torch.isfinite(plain).all()
    for modules in (0, 16):
        result = gs_jacobi_official(
            model, z, LABELS, num_gs=[modules] * 3, max_jacobi=[1] * 3, guess=[1, 0, 1], **options
        )
        assert torch.equal(result.images, plain)
        assert result.sweeps == [[15]] * 3 and result.evaluations == [15] * 3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "num_gs", [[1, 1, 1], [4, 1, 8], [0, 2, 4]], ids=lambda lists: "-".join(map(str, lists))
)
def test_enough_sweeps_without_clamp_give_the_loop(
    num_gs: list[int], options: dict[str, Any]
) -> None:
    """Also with it, where nothing comes near it; and with both guesses."""
    model = random_flow(4)
    for scale, clamp in ((1.0, None), (0.3, 3.0)):
        z = noise(model, 3, scale=scale)
        plain = tarflow_official(model, z, LABELS, return_sequence=True, **apple(options))
        assert clamp is None or max(float(x.abs().max()) for x in plain) < 3
        for guess in ([0, 0, 0], [1, 1, 1]):
            result = gs_jacobi_official(
                model, z, LABELS, num_gs=num_gs, max_jacobi=[17] * 3, guess=guess, ebound=0.0,
                clamp=clamp, **options,
            )  # fmt: skip
            torch.testing.assert_close(result.images, plain[-1], atol=2e-5, rtol=0)
            modules = [max(1, n) for n in num_gs]
            assert [len(s) for s in result.sweeps] == modules


@pytest.mark.parametrize("num_gs", [[1, 1, 1], [4, 4, 8]], ids=["jacobi", "modules"])
def test_the_clamp_moves_the_fixed_point(num_gs: list[int]) -> None:
    """Converged sweeps of the official scheme are off by more than 0.3 on seeds where a token of
    some block leaves +-3, and right where none does."""
    model = random_flow(4)
    wrong = 0
    for seed in range(8):
        z = noise(model, 1, seed)
        plain = tarflow_official(model, z, LABELS[:1], return_sequence=True)
        lists = {"num_gs": num_gs, "max_jacobi": [17] * 3, "guess": [0] * 3}
        result = gs_jacobi_official(model, z, LABELS[:1], ebound=0.0, **lists)
        free = gs_jacobi_official(model, z, LABELS[:1], ebound=0.0, clamp=None, **lists)
        torch.testing.assert_close(free.images, plain[-1], atol=2e-5, rtol=0)
        assert float(result.images.abs().max()) <= 3
        error = float((result.images - plain[-1]).abs().max())
        outside = max(float(x.abs().max()) for x in plain) > 3
        assert (error > 1e-3) == outside
        wrong += error > 0.3
    assert wrong == 2


def test_the_clamp_meets_the_first_token_with_one_module_only() -> None:
    model = random_flow(4, blocks=1, num_classes=0)
    z = noise(model, 1)
    z[:, 0] = 5.0  # passes unchanged through the flow
    for modules, expected in ((0, 5.0), (1, 3.0), (4, 5.0)):
        result = gs_jacobi_official(model, z, num_gs=[modules], max_jacobi=[9], guess=[0])
        assert float(result.images[0, 0, 0, 0]) == expected


def test_stop_is_one_norm_over_the_batch() -> None:
    """Copies of a sample in the batch: the norm grows by sqrt(B), the divisor by B."""
    model = random_flow(4)
    lists = {"num_gs": [1, 1, 1], "max_jacobi": [50] * 3, "guess": [0] * 3}
    z = noise(model, 1)
    counts = []
    for copies in (1, 64):
        y = LABELS[:1].expand(copies)
        result = gs_jacobi_official(
            model, z.expand(copies, -1, -1), y, ebound=1e-3, clamp=None, **lists
        )
        counts.append(sum(map(sum, result.sweeps)))
    assert counts[1] < counts[0]


def test_kept_keys_are_one_sweep_behind() -> None:
    """After one sweep of the first module, the second attends to the guess of the first."""
    model = random_flow(4, blocks=1, num_classes=0)
    block, z = model.blocks[0], noise(model, 2)

    def sweep(inputs: Any) -> Any:
        h = block.proj_in(inputs) + block.pos_embed
        for layer in block.attn_blocks:
            h = layer(h)
        a, b = (torch.nn.functional.pad(p[:, :-1], (0, 0, 1, 0)) for p in block.affine(h))
        return z * a.exp() + b

    result = gs_jacobi_official(model, z, num_gs=[2], max_jacobi=[1], guess=[0], clamp=None)
    x = model.patchify(result.images)
    first = sweep(z)[:, 1:9]
    torch.testing.assert_close(x[:, 1:9], first, atol=1e-5, rtol=0)
    behind, fresh = z.clone(), z.clone()
    behind[:, 8], fresh[:, 1:9] = first[:, -1], first
    torch.testing.assert_close(x[:, 9:], sweep(behind)[:, 9:], atol=1e-5, rtol=0)
    assert float((x[:, 9:] - sweep(fresh)[:, 9:]).abs().max()) > 1e-3


def test_tokens_that_no_module_holds_stay_the_guess() -> None:
    model = random_flow(5, num_classes=0)
    z = noise(model, 2)
    for guess in (0, 1):
        result = gs_jacobi_official(
            model, z, num_gs=[0, 0, 7], max_jacobi=[1, 1, 30], guess=[0, 0, guess], clamp=None
        )
        before = gs_jacobi_official(
            model, z, num_gs=[0, 0, 0], max_jacobi=[1, 1, 1], guess=[0, 0, 0]
        )
        x, exact = model.patchify(result.images), model.patchify(before.images)
        z_last = model.blocks[0](exact)[0]  # what the last inversion starts from
        lost = slice(6 * 3 + 1, 6 * 3 + 1 + 4)  # 25 = 7 modules of 3 and 4 more
        expected = torch.zeros_like(z_last[:, lost]) if guess else z_last[:, lost]
        torch.testing.assert_close(x[:, lost], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(x[:, :19], exact[:, :19], atol=1e-4, rtol=0)
        assert float((x[:, lost] - exact[:, lost]).abs().max()) > 0.1
        assert result.evaluations[2] == 3 * sum(result.sweeps[2]) - result.sweeps[2][-1]


def test_embedded_flow_is_off_by_the_clamp() -> None:
    """The strategy of one tough block and seven modules on the trained model, five seeds."""
    model = load_tarflow()
    errors, free = [], []
    lists = strategy_lists("[3-7-7-10]", len(model.blocks))
    for seed in range(5):
        z, y = noise(model, 1, seed), torch.tensor([seed])
        plain = tarflow_official(model, z, y)
        for clamp, found in ((3.0, errors), (None, free)):
            result = gs_jacobi_official(
                model, z, y, num_gs=lists[0], max_jacobi=[60] * 4, guess=lists[2], clamp=clamp
            )
            found.append(float((result.images - plain).abs().max()))
    assert max(free) < 1e-3
    assert max(errors) > 0.3


def test_strategies() -> None:
    lists = strategy_lists("[6-8-32-10]", 8)
    assert lists == ([1, 8, 1, 1, 1, 1, 1, 1], [10, 32, 10, 10, 10, 10, 10, 10], [0] * 8)
    lists = strategy_lists("0/6-8-32-20", 8, [1] * 8)
    assert lists == ([1, 8, 1, 1, 1, 1, 1, 8], [20, 32, 20, 20, 20, 20, 20, 32], [1] * 8)
    lists = strategy_lists("[0/7-256/8-1/13-6]", 8)
    assert lists[:2] == ([8, 1, 1, 1, 1, 1, 1, 256], [13, 6, 6, 6, 6, 6, 6, 1])
    for bad, message in (
        ("[6-8-32]", "expected '.Stack-GS-J-Else.'"),
        ("[8-8-32-10]", "expected blocks below 8"),
        ("[0/1/2-8/8-32-10]", "expected 1 or 3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            strategy_lists(bad, 8)
    with pytest.raises(ValueError, match="argument 'guess' expected 8 numbers, got 1"):
        strategy_lists("[6-8-32-10]", 8, [0])


def test_what_the_official_code_cannot_do_is_refused() -> None:
    model = random_flow(3)
    z = noise(model, 1)
    lists: dict[str, Any] = {"num_gs": [1] * 3, "max_jacobi": [2] * 3, "guess": [0] * 3}
    for change, message in (
        ({"num_gs": [1, 1]}, "argument 'num_gs' expected 3 numbers, got 2"),
        ({"num_gs": [5, 1, 1]}, "argument 'num_gs' expected at most 4 modules of 9 tokens, or 9"),
        ({"num_gs": [10, 1, 1]}, "argument 'num_gs' expected at most 4"),
        ({"max_jacobi": [2, 0, 2]}, "argument 'max_jacobi' expected numbers >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            gs_jacobi_official(model, z, **{**lists, **change})
    with pytest.raises(ValueError, match="expected nvp=True"):
        gs_jacobi_official(random_flow(3, nvp=False), z, **lists)


def published_names(blocks: int, layers: int, classes: int) -> set[str]:
    """Of a GS-Jacobi checkpoint, a plain `model.state_dict()`: those of apple/ml-tarflow."""
    names = {"var"}
    for i in range(blocks):
        block = f"blocks.{i}."
        names |= {block + n for n in ("pos_embed", "attn_mask")}
        names |= {f"{block}proj_{way}.{p}" for way in ("in", "out") for p in ("weight", "bias")}
        names |= {block + "class_embed"} if classes else set()
        for j in range(layers):
            for part in ("attention.norm", "attention.qkv", "attention.proj", "mlp.norm"):
                names |= {f"{block}attn_blocks.{j}.{part}.{p}" for p in ("weight", "bias")}
            for part in ("mlp.main.0", "mlp.main.2"):
                names |= {f"{block}attn_blocks.{j}.{part}.{p}" for p in ("weight", "bias")}
    return names


@pytest.mark.parametrize("classes", [0, 3])
def test_gs_jacobi_checkpoints_load(tmp_path: Path, classes: int) -> None:
    """RGB, head width 64, a raw state dict; the noise of the training is told by the caller."""
    torch.manual_seed(0)
    model = TarFlow(3, 8, 2, 64, 2, 1, num_classes=classes)
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    assert set(state) == published_names(2, 1, classes)
    path = tmp_path / "afhq_model_2_64_2_1_0.07.pth"
    torch.save(state, path)
    loaded = load_tarflow(path, noise_std=0.07)
    assert loaded.noise_std == 0.07 and loaded.config == model.config
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name])


def test_foreign_checkpoints_are_refused_with_their_keys(tmp_path: Path) -> None:
    state = TarFlow(3, 8, 2, 64, 2, 1).state_dict()
    path = tmp_path / "flow.pth"
    foreign = {k.replace("mlp.main.0", "mlp.gate_proj"): v for k, v in state.items()}
    torch.save(foreign, path)
    first = r"not a TarFlow state dict: missing blocks.0.attn_blocks.0.mlp.main.0.weight"
    with pytest.raises(ValueError, match=first):
        load_tarflow(path)
    foreign = dict(state) | {"feat_rope.freqs_cos": torch.zeros(4), "blocks.1.sos": torch.zeros(1)}
    del foreign["blocks.1.pos_embed"]
    torch.save(foreign, path)
    with pytest.raises(ValueError) as error:
        load_tarflow(path)
    for line in ("missing: blocks.1.pos_embed", "unexpected: feat_rope.freqs_cos", "blocks.1.sos"):
        assert line in str(error.value)
