"""The fused attention of the official VAR and TarFlow against modules of that behaviour."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from official_attention import TarFlowAttention, TarFlowBlock, VarAttention
from torch import Tensor, nn

import pixleap as px

var, tarflow = px.integrations.var, px.integrations.tarflow
SCALES = (1, 4, 9, 16, 25)


def var_layer(l2_norm: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    layer = VarAttention(96, 3, l2_norm)
    if l2_norm:
        with torch.no_grad():
            # The last is capped at 100, which leaves bfloat16 scores without a digit.
            last = 9.0 if dtype == torch.float32 else 2.0
            layer.scale_mul_1H11[0, :, 0, 0] = torch.tensor([1.0, 1.5, last])
    return layer.to(dtype).eval().requires_grad_(False)


def tokens(length: int, dtype: torch.dtype = torch.float32, width: int = 96) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(length)).to(dtype)


def scales(layer: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    layer.kv_caching(True)  # type: ignore[operator]
    return [layer(tokens(n, dtype), attn_bias=None) for n in SCALES]


@pytest.mark.parametrize("max_length", [None, sum(SCALES), 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("l2_norm", [True, False])
def test_var_steps_with_a_cache(
    l2_norm: bool, dtype: torch.dtype, max_length: int | None, calls: list[Any]
) -> None:
    layer = var_layer(l2_norm, dtype)
    want, keys = scales(layer, dtype), layer.cached_k
    exact = scales(copy.deepcopy(layer).double(), torch.float64)
    names = list(layer.state_dict())
    assert var.patch(layer, max_length) is layer and list(layer.state_dict()) == names
    assert not calls
    for _ in range(2):  # kv_caching starts anew
        got = scales(layer, dtype)
        for a, b, e in zip(got, want, exact, strict=True):
            if dtype == torch.float32:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            else:  # the official layer rounds q, k and v once more
                off = [(x.double() - e).norm() for x in (a, b)]
                assert off[0] <= 1.1 * off[1] and (a - b).norm() <= 8e-3 * e.norm()
                assert (a - b).abs().float().mean() < 1e-3
        assert layer.cached_k.shape == keys.shape == (2, 3, sum(SCALES), 32)
        close = 1e-6 if dtype == torch.float32 else 2e-2 if not l2_norm else 4e-3
        torch.testing.assert_close(layer.cached_k, keys, atol=close, rtol=0)
    assert [shape[2] for shape in calls] == [*SCALES, *SCALES]
    assert layer.cached_k.untyped_storage().data_ptr() == layer.cached_k.data_ptr()
    layer.kv_caching(False)
    assert layer.cached_k is None
    var.unpatch(layer)
    assert "forward" not in vars(layer)
    for a, b in zip(scales(layer, dtype), want, strict=True):
        assert torch.equal(a, b)


def test_var_whole_sequence_with_a_bias(calls: list[Any]) -> None:
    layer, x = var_layer(), tokens(30)
    blocks = torch.arange(30) // 7
    bias = torch.zeros(1, 1, 30, 30).masked_fill_(blocks[:, None] < blocks, -torch.inf)
    want = layer(x, bias)
    torch.testing.assert_close(var.patch(layer)(x, bias), want, atol=1e-5, rtol=0)
    assert len(calls) == 1 and layer.cached_k is None


def test_var_training_goes_the_original_way(calls: list[Any]) -> None:
    layer, x = var_layer().requires_grad_(True), tokens(9)
    layer(x, None).square().sum().backward()
    want = {n: p.grad.clone() for n, p in layer.named_parameters()}
    layer.zero_grad()
    var.patch(layer)
    layer(x, None).square().sum().backward()
    assert not calls
    for n, p in layer.named_parameters():
        assert torch.equal(p.grad, want[n])
    with torch.no_grad():
        layer(x, None)
        assert len(calls) == 1
        layer.attn_drop = 0.5
        layer.train()(x, None)
        assert len(calls) == 1
        layer.eval()(x, None)
        layer.double()(x.double(), None)
    assert len(calls) == 2


def test_var_cache_of_others_is_respected(calls: list[Any]) -> None:
    """What stands in cached_k counts, whoever has put it there, and original and fused steps may
    follow one another."""
    layer = var_layer()
    want = scales(layer)
    var.patch(layer)
    layer.kv_caching(True)
    for i, n in enumerate(SCALES):
        if i == 2:  # a copy, as of a model that keeps branches
            layer.cached_k, layer.cached_v = layer.cached_k.clone(), layer.cached_v.clone()
        torch.testing.assert_close(layer(tokens(n), None), want[i], atol=1e-5, rtol=0)
    assert len(calls) == 2
    layer.kv_caching(True)
    first = layer(tokens(1), None), layer.cached_k, layer.cached_v
    layer(tokens(4), None)
    layer.cached_k, layer.cached_v = first[1:]  # back to an earlier state
    torch.testing.assert_close(layer(tokens(4), None), want[1], atol=1e-5, rtol=0)


def test_var_autocast(calls: list[Any]) -> None:
    layer = var_layer(dtype=torch.bfloat16).float()
    with torch.autocast("cpu", torch.bfloat16):
        want = scales(layer)
        got = scales(var.patch(layer))
    assert len(calls) == len(SCALES) and got[0].dtype == want[0].dtype
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 8e-3 * b.norm()


def test_var_model_room_and_copies(calls: list[Any]) -> None:
    model = nn.Sequential(var_layer(), nn.Identity(), var_layer())
    model.L = sum(SCALES)
    assert var.patch(var.patch(model)) is model  # again changes nothing
    scales(model[0])
    assert model[0].cached_k.untyped_storage().nbytes() == 4 * 2 * 96 * sum(SCALES)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[2].proj.weight.zero_()
    calls.clear()
    assert not torch.equal(twin[2](tokens(3), None), model[2](tokens(3), None))
    assert len(calls) == 2
    with pytest.raises(
        ValueError, match="expected SelfAttention modules of VAR, got none in Linear"
    ):
        var.patch(nn.Linear(1, 1))
    with pytest.raises(
        ValueError, match="expected Attention modules of TarFlow, got none in Linear"
    ):
        tarflow.patch(nn.Linear(1, 1))


def flow(dtype: torch.dtype = torch.float32) -> TarFlowBlock:
    torch.manual_seed(1)
    return with_float_norms(TarFlowBlock(48, 16, 12).to(dtype)).eval().requires_grad_(False)


def with_float_norms(block: TarFlowBlock) -> TarFlowBlock:
    """The official code normalises in float32 whatever the rest is in."""
    for m in block.modules():
        if isinstance(m, nn.LayerNorm):
            m.float()
    return block


def sampled(block: TarFlowBlock, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x, outputs = tokens(12, dtype, 48), []
    block.set_sample_mode(True)
    for i in range(12):
        outputs.append(block(x[:, i : i + 1], which_cache="cond"))
        outputs.append(block(x[:, i : i + 1] + 1, temp=1.3, which_cache="uncond"))
    return outputs


@pytest.mark.parametrize("max_length", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tarflow_sampling(dtype: torch.dtype, max_length: int | None, calls: list[Any]) -> None:
    block = flow(dtype)
    want = sampled(block, dtype)
    exact = sampled(with_float_norms(copy.deepcopy(block).double()), torch.float64)
    tarflow.patch(block, max_length)
    for a, b, e in zip(sampled(block, dtype), want, exact, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        else:
            off = [(x.double() - e).norm() for x in (a, b)]
            assert off[0] <= 1.2 * off[1] and (a - b).norm() <= 5e-3 * e.norm()
    assert len(calls) == 2 * 2 * 12
    (keys,) = block.attn_blocks[1].k_cache["uncond"]  # type: ignore[index, union-attr, misc]
    assert keys.shape == (2, 3, 12, 16)
    block.set_sample_mode(False)
    tarflow.unpatch(block)
    for a, b in zip(sampled(block, dtype), want, strict=True):
        assert torch.equal(a, b)


def test_tarflow_whole_sequences(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = flow(), tokens(12, width=48)
    want = block(x)
    skipped = []
    sdpa = tarflow.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Any:
        skipped.append(kwargs["is_causal"])
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(tarflow, "scaled_dot_product_attention", recorded)
    tarflow.patch(block)
    for _ in range(2):
        torch.testing.assert_close(block(x), want, atol=1e-5, rtol=0)
    block.attn_mask[3, 0] = 0  # no triangle any more; written in place
    got = block(x)
    tarflow.unpatch(block)
    torch.testing.assert_close(got, block(x), atol=1e-5, rtol=0)
    assert skipped == [True] * 4 + [False] * 2 and len(calls) == 6


def test_tarflow_other_ways(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = flow(), tokens(12, width=48)
    want = sampled(block)
    tarflow.patch(block)
    block.set_sample_mode(True)
    for i in range(12):  # original and fused steps in turn
        monkeypatch.setattr(TarFlowAttention, "USE_SPDA", i % 5 != 2)
        step = x_i = tokens(12, width=48)[:, i : i + 1]
        torch.testing.assert_close(block(step, which_cache="cond"), want[2 * i], atol=1e-5, rtol=0)
        block(x_i + 1, temp=1.3, which_cache="uncond")
    assert len(calls) == 2 * 2 * 2  # until somebody else's tokens stand in the lists
    monkeypatch.undo()
    block = flow().requires_grad_(True)
    block(x).sum().backward()
    want_grad = block.attn_blocks[0].qkv.weight.grad.clone()  # type: ignore[union-attr]
    block.zero_grad()
    tarflow.patch(block)
    block(x).sum().backward()
    assert torch.equal(block.attn_blocks[0].qkv.weight.grad, want_grad)  # type: ignore[union-attr]
