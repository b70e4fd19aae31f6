from __future__ import annotations

from typing import Any

import numpy as np
import torch

import pixleap as px

from harness import FLOATS, Case

ACTIVATIONS = {
    "none": lambda y: y,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def make(
    rows: tuple[int, int],
    k: int,
    n: int,
    *,
    bias: bool = True,
    gate: bool = False,
    residual: bool = False,
    packed: str = "float32",
    **kwargs: Any,
) -> Any:
    """Packed weights are torch tensors, which keep their dtype."""

    def build(rng: np.random.Generator) -> Any:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        x = normal(*rows, k)
        if packed != "float32":
            # Numbers that bfloat16 holds, since AMX rounds x: any error left is the kernel's.
            x = torch.from_numpy(x).bfloat16().float().numpy()
        weight = torch.from_numpy(normal(n, k) / max(k, 1) ** 0.5)
        panels = px.ops.linear_pack(weight, dtype=packed)
        optional: dict[str, Any] = {}
        if packed == "int8":
            panels, optional["scales"] = panels
        if bias:
            optional["bias"] = normal(n)
        if gate:
            optional["gate"] = normal(rows[0], n)
        if residual:
            optional["residual"] = normal(*rows, n)
        return (x, panels, n), {**optional, **kwargs}

    return build


# The sums are as good as float32 gives: their error grows with K.
LONG = {"float32": 1e-5}


def timed(rows: tuple[int, int], k: int, n: int, x_dtype: str = "", **kwargs: Any) -> Case:
    """x_dtype: of x where it is not the benchmark's. The peer has weights of x's dtype (int8 ones
    dequantised to float32, which torch is fastest with), but for x in bfloat16 with int8 weights
    torch's own kernel for these."""
    m, extra = rows[0] * rows[1], "".join(f" {v}" for v in kwargs.values() if isinstance(v, str))
    kind = kwargs.get("packed", "float32")
    if x_dtype:
        extra += f", x {x_dtype}"
    build = make(rows, k, n, **kwargs)
    weights: dict[torch.dtype, torch.Tensor] = {}

    def product(x: Any, packed: Any, features: int, scales: Any, bias: Any) -> Any:
        own = packed.dtype == torch.int8 and x.dtype == torch.bfloat16
        if x.dtype not in weights:
            flat = packed[..., None] if packed.dim() == 3 else packed
            flat = flat.permute(0, 2, 1, 3).reshape(-1, flat.shape[1] * flat.shape[3])
            flat = flat[:features, : x.shape[-1]]
            if scales is not None and not own:
                flat = flat * scales[:, None]
            weights[x.dtype] = flat.to(torch.int8 if own else x.dtype).contiguous()
        if not own:
            return torch.nn.functional.linear(x, weights[x.dtype], bias)
        y = torch._weight_int8pack_mm(x.flatten(0, 1), weights[x.dtype], scales.to(x.dtype))
        y = y.view(*x.shape[:2], features)
        return y if bias is None else y + bias

    def peer(x: Any, packed: Any, features: int, *, activation: str = "none", **rest: Any) -> Any:
        y = product(x, packed, features, rest.get("scales"), rest.get("bias"))
        y = ACTIVATIONS[activation](y)
        if "gate" in rest:
            y = y * rest["gate"][:, None]
        return y + rest["residual"] if "residual" in rest else y

    operands = m * k + m * n * (2 if kwargs.get("residual") else 1)
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[kind]  # of a weight; x's is 4 below
    weight_bytes = k * n * size * (2.0 if x_dtype else 1.0)
    return Case(
        f"{m} x {k} to {n}{extra}",
        build,
        dtypes=(x_dtype,) if x_dtype else FLOATS,
        tolerance=LONG,
        flops=2.0 * m * k * n,
        bytes=4.0 * operands + weight_bytes,
        peer=peer,
    )


def all_rows(packed: str) -> list[Case]:
    """Every number of rows that has a kernel of its own, and what is split into two."""
    return [
        Case(f"{rows} rows {packed}", make((1, rows), 20, 83, packed=packed))
        for rows in (*range(1, 18), 33, 61)
    ]


EVERYTHING: dict[str, Any] = {"gate": True, "residual": True}
CASES = [
    Case("one number", make((1, 1), 1, 1)),
    Case("no rows", make((2, 0), 5, 7)),
    Case("no features", make((2, 3), 5, 0)),
    Case("no columns", make((2, 3), 0, 7, gate=True)),
    Case("plain", make((3, 5), 17, 31, bias=False)),
    Case("tails", make((2, 7), 37, 41, activation="gelu", **EVERYTHING)),
    Case("tanh", make((1, 9), 64, 48, activation="gelu_tanh", gate=True)),
    Case("silu", make((5, 1), 33, 17, activation="silu", residual=True)),
    Case("deep", make((2, 70), 1100, 150, **EVERYTHING), tolerance=LONG),
    Case("bfloat16 tails", make((2, 7), 37, 41, packed="bfloat16", **EVERYTHING)),
    Case("bfloat16 one", make((1, 1), 1, 1, packed="bfloat16", activation="silu")),
    Case("bfloat16 no columns", make((1, 2), 0, 3, packed="bfloat16")),
    Case("bfloat16 deep", make((2, 70), 1101, 150, packed="bfloat16"), tolerance=LONG),
    Case("int8 tails", make((2, 7), 37, 41, packed="int8", activation="gelu", **EVERYTHING)),
    Case("int8 one", make((1, 1), 1, 1, packed="int8", activation="silu")),
    Case("int8 no columns", make((1, 2), 0, 3, packed="int8")),
    Case("int8 no features", make((1, 2), 5, 0, packed="int8")),
    Case("int8 deep", make((2, 70), 1103, 150, packed="int8"), tolerance=LONG),
    *all_rows("float32"),
    *all_rows("bfloat16"),
    *all_rows("int8"),
    # One token: weights in three dtypes, against torch with the same.
    timed((1, 1), 1024, 4096),
    timed((1, 1), 1024, 4096, "bfloat16", packed="bfloat16"),
    timed((1, 1), 1024, 4096, "bfloat16", packed="int8"),
    timed((1, 1), 1024, 4096, packed="int8"),
    timed((1, 1), 4096, 1024),
    timed((1, 1), 4096, 1024, "bfloat16", packed="bfloat16"),
    timed((1, 1), 4096, 1024, "bfloat16", packed="int8"),
    timed((1, 1), 4096, 1024, packed="int8"),
    timed((1, 1), 1024, 1024),
    timed((1, 1), 1024, 4096, activation="gelu_tanh"),
    timed((1, 4), 1024, 4096, activation="gelu_tanh"),
    timed((1, 36), 1024, 1024, **EVERYTHING),
    timed((1, 64), 1024, 4096, activation="gelu_tanh"),
    timed((1, 64), 4096, 1024, **EVERYTHING),
    timed((1, 256), 1024, 4096, activation="gelu_tanh"),
    timed((1, 256), 1024, 4096, activation="gelu_tanh", packed="bfloat16"),
    timed((1, 256), 1024, 4096, activation="gelu_tanh", packed="int8"),
    timed((1, 256), 4096, 1024, **EVERYTHING),
    timed((1, 256), 512, 512),
    timed((1, 1), 64, 256, activation="gelu"),
    timed((1, 100), 64, 256, activation="gelu"),
    timed((2, 100), 128, 512, activation="gelu"),
    timed((16, 100), 64, 64, **EVERYTHING),
    timed((16, 100), 128, 512, activation="gelu"),
    timed((200, 49), 128, 128),
    timed((200, 49), 64, 256, activation="silu"),
]
