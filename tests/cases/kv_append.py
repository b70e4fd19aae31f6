from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> Any:
    """As FLUX (pairs) and Hugging Face's LLaMA (halves) do, for whole heads."""
    if interleaved:
        cos, sin = (t.repeat_interleave(2, -1) for t in (cos, sin))
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        partner = torch.stack((-imaginary, real), -1).flatten(-2)
    else:
        cos, sin = (torch.cat((t, t), -1) for t in (cos, sin))
        first, second = x.chunk(2, -1)
        partner = torch.cat((-second, first), -1)
    return x * cos + partner * sin


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return (x / scale).round().to(torch.int8), scale[..., 0]


def peer(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    q_scale: torch.Tensor | None = None,
    norm: str | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    rope: Any = None,
    rope_interleaved: bool = True,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> Any:
    """As in VAR's official loop: unbind, normalise, concatenate with the keys and values so far;
    and as FLUX and LLaMA do: RMSNorm, rotation."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if q_scale is not None:
        q = torch.nn.functional.normalize(q, dim=-1).mul(q_scale[:, None, None])
        k = torch.nn.functional.normalize(k, dim=-1)
    if norm == "rms":
        q, k = (
            torch.nn.functional.rms_norm(x, x.shape[-1:], w, eps)
            for x, w in ((q, q_weight), (k, k_weight))
        )
    if rope is not None:
        cos, sin = (t[position : position + q.shape[2]] for t in rope)
        q, k = (rotate(x, cos, sin, rope_interleaved) for x in (q, k))
    new = [k, v]
    if k_scale is not None:
        (k, a), (v, b) = quantise(k), quantise(v)
        new = [k, v, a, b]
    held = (k_cache, v_cache) if k_scale is None else (k_cache, v_cache, k_scale, v_scale)
    return q, *(torch.cat((c[:, :, :position], x), 2) for c, x in zip(held, new, strict=True))


def make(
    batch: int,
    length: int,
    heads: int,
    dim: int,
    capacity: int,
    position: int,
    normalised: bool = True,
    int8: str = "",
    **options: Any,
) -> Any:
    """options: as `drawn_options`. int8: "" for caches like qkv; "numpy" or "torch" for int8 ones
    with scales of that kind (a torch tensor stays float32 whatever the dtype under test)."""

    def build(rng: np.random.Generator) -> Any:
        qkv = rng.standard_normal((batch, length, 3, heads, dim)).astype(np.float32)
        size = (batch, heads, capacity, dim)
        kwargs = drawn_options(rng, heads, dim, normalised=normalised, **options)
        if int8:
            caches = [rng.integers(-127, 128, size).astype(np.int8) for _ in range(2)]
            kwargs.update(drawn_scales(rng, size[:3], int8))
        else:
            caches = [rng.standard_normal(size).astype(np.float32) for _ in range(2)]
        return (qkv, *caches, position), kwargs

    return build


def drawn_scales(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> dict[str, Any]:
    scales = [rng.uniform(0, 1, shape).astype(np.float32) for _ in range(2)]
    both = scales if kind == "numpy" else [torch.from_numpy(s) for s in scales]
    return dict(zip(("k_scale", "v_scale"), both, strict=True))


def drawn_options(
    rng: np.random.Generator,
    heads: int,
    dim: int,
    *,
    normalised: bool,
    rms: str = "",
    rope: tuple[int, ...] = (),
    rows: tuple[int, ...] = (),
    **kwargs: Any,
) -> dict[str, Any]:
    """rms: "plain", "shared" weights or those of each "head". rope: shape of the tables. rows:
    shape of rope_positions. Others go to the op."""
    if rms:
        kwargs.update(norm="rms")
        size = (heads, dim) if rms == "head" else (dim,)
        if rms != "plain":
            for name in ("q_weight", "k_weight"):
                kwargs[name] = rng.uniform(0.5, 2, size).astype(np.float32)
    elif normalised:
        kwargs["q_scale"] = rng.uniform(1, 20, heads).astype(np.float32)
    if rope:
        angles = rng.uniform(-4, 4, rope).astype(np.float32)
        kwargs["rope"] = (np.cos(angles), np.sin(angles))
    if rows:
        kwargs["rope_positions"] = rng.integers(0, rope[0], rows)
    return kwargs


def case(name: str, *sizes: int, **kwargs: Any) -> Case:
    return Case(name, make(*sizes, **kwargs), has_out=False)  # more than `out` is written


# One step of 254: a number near the middle of two may go either way. tests/test_kv_append.py says
# more of them.
INT8_TOLERANCE = {"float32": 1.01 / 127, "bfloat16": 1.01 / 127, "float16": 1.01 / 127}


def int8_cases(name: str, *sizes: int, **kwargs: Any) -> list[Case]:
    return [
        Case(
            f"{name}, int8, {kind}",
            make(*sizes, int8=kind, **kwargs),
            dtypes=dtypes,
            tolerance=INT8_TOLERANCE,
            has_out=False,
        )
        for kind, dtypes in (("numpy", ("float32",)), ("torch", ("bfloat16", "float16")))
    ]


def timed(name: str, batch: int, length: int, heads: int, dim: int, end: int, **kw: Any) -> Case:
    size = batch * length * heads * dim
    return Case(
        f"{name} L={length} at {end - length}",
        make(batch, length, heads, dim, end, end - length, **kw),
        flops=10.0 * size,
        bytes=(3.5 if kw.get("int8") else 6) * 4.0 * size,
        peer=peer,
        has_out=False,
        **({"dtypes": ("float32",), "tolerance": INT8_TOLERANCE} if kw.get("int8") else {}),
    )


HALVES: dict[str, Any] = {"rope_interleaved": False}
LLAMA: dict[str, Any] = {"rms": "shared", **HALVES}

CASES = [
    case("one", 1, 1, 1, 1, 1, 0),
    case("plain copy", 2, 3, 2, 16, 9, 4, normalised=False),
    case("to the end", 2, 5, 3, 16, 9, 4),
    case("tail 5", 2, 3, 2, 5, 7, 1),
    case("tail 40", 1, 7, 2, 40, 9, 2),
    case("tail 72", 2, 4, 1, 72, 4, 0),
    case("empty batch", 0, 3, 2, 8, 5, 1),
    case("no tokens", 2, 0, 2, 8, 5, 5),
    timed("VAR-d16", 2, 1, 16, 64, 1),
    timed("VAR-d16", 2, 64, 16, 64, 155),
    timed("VAR-d16", 2, 256, 16, 64, 680),
    timed("digits", 200, 49, 2, 32, 79),
    timed("TarFlow", 100, 1, 2, 32, 49, normalised=False),
    case("l2 without scale", 2, 3, 2, 9, 4, 1, normalised=False, norm="l2"),
    case("rms", 2, 3, 2, 24, 5, 1, rms="shared"),
    case("rms, no weights, tail 5", 2, 3, 2, 5, 5, 1, rms="plain", eps=0.25),
    case("rms, weights of heads, tail 72", 1, 4, 3, 72, 6, 2, rms="head"),
    case("rope", 2, 3, 2, 16, 9, 4, normalised=False, rope=(9, 8)),
    case("rope of halves", 2, 3, 2, 16, 9, 4, normalised=False, rope=(8, 8), **HALVES),
    case("rope, odd dim", 2, 3, 2, 7, 9, 4, normalised=False, rope=(7, 3)),
    case("rope of halves, odd dim", 2, 3, 2, 43, 9, 4, normalised=False, rope=(7, 21), **HALVES),
    case("rope, part", 2, 3, 2, 40, 9, 0, normalised=False, rope=(5, 5)),
    case("rope of halves, part", 2, 3, 2, 40, 9, 0, normalised=False, rope=(5, 5), **HALVES),
    case("rope of nothing", 1, 2, 1, 6, 3, 0, normalised=False, rope=(3, 0)),
    case("l2, rope", 2, 3, 2, 18, 9, 4, rope=(9, 9)),
    case("rms, rope", 2, 5, 3, 24, 9, 4, rms="head", rope=(9, 12)),
    case("rms, rope of halves", 2, 5, 3, 24, 9, 4, rms="shared", rope=(9, 12), **HALVES),
    case("rope per token", 3, 4, 2, 16, 9, 4, rms="shared", rope=(3, 4, 7)),
    case("rope per token, one for all", 3, 4, 2, 16, 9, 4, rope=(1, 4, 7), **HALVES),
    case("rope at positions", 3, 4, 2, 16, 9, 4, rms="plain", rope=(20, 8), rows=(4,)),
    case("rope at positions of samples", 3, 4, 2, 16, 9, 4, rope=(20, 8), rows=(3, 4)),
    *int8_cases("plain", 2, 3, 2, 16, 9, 4, normalised=False),
    *int8_cases("l2", 2, 5, 3, 37, 9, 4),
    *int8_cases("rms", 1, 2, 2, 24, 3, 0, rms="shared"),
    *int8_cases("rms, rope", 2, 3, 2, 24, 9, 4, rms="head", rope=(9, 12)),
    *int8_cases("rope of halves", 2, 3, 2, 70, 9, 4, normalised=False, rope=(9, 33), **HALVES),
    timed("FLUX", 1, 512, 24, 128, 512, rms="shared", rope=(512, 64)),
    timed("LLaMA", 8, 1, 16, 64, 256, rope=(256, 32), **LLAMA),
    timed("LLaMA", 2, 128, 16, 64, 256, rope=(256, 32), **LLAMA),
    timed("LLaMA int8", 2, 128, 16, 64, 256, rope=(256, 32), int8="numpy", **LLAMA),
    timed("VAR-d16 int8", 2, 256, 16, 64, 680, int8="numpy"),
]
