from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(
    inputs: list[torch.Tensor],
    coefficients: Any,
    weights: Any = None,
    clamp: float | None = None,
    noise_scale: Any = None,
    seed: int = 0,
    **key: Any,
) -> Any:
    """The usual chain of elementwise torch operations; noise is torch's own."""
    if weights is not None:
        inputs = [x if w is None else x * w for x, w in zip(inputs, weights, strict=True)]
    noise = None
    if noise_scale is not None:
        noise = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed))
    results = []
    for j in range(len(coefficients) // len(inputs)):
        row = coefficients[j * len(inputs) : (j + 1) * len(inputs)]
        total = inputs[0] * row[0]
        for x, c in zip(inputs[1:], row[1:], strict=True):
            total = total + x * c
        if noise is not None:
            total = total + noise_scale[j] * noise
        results.append(total if clamp is None else total.clamp(-clamp, clamp))
    return results


# By position, the dtypes of the inputs of a mixed call; None is the one under test.
Mixed = tuple[str | None, ...]


def make(
    shape: tuple[int, ...],
    n: int,
    m: int,
    flat: bool = False,
    table: str = "",
    noise_table: str = "",
    weights: tuple[tuple[int, ...] | None, ...] = (),
    weight_dtype: str = "float32",
    mixed: Mixed = (),
    **kwargs: Any,
) -> Any:
    """weights: shapes; where an extent is 1, a torch tensor expanded to the shape of the inputs or,
    where it has as many axes as one sample, to that of one."""

    def array(x: np.ndarray, dtype: str | None) -> Any:
        x = x.astype(np.float32)
        return x if dtype is None else torch.from_numpy(x).to(getattr(torch, dtype))

    def build(rng: np.random.Generator) -> Any:
        kinds = [*mixed, *[None] * n]
        inputs = [array(rng.standard_normal(shape), kinds[i]) for i in range(n)]
        coefficients: Any = rng.standard_normal((m, n)).tolist()
        more = dict(kwargs)
        if flat:
            coefficients = tuple(c for row in coefficients for c in row)
        if table:
            coefficients = rng.standard_normal((shape[0], m, n)).astype(table)
        if noise_table:
            more["noise_scale"] = rng.standard_normal((shape[0], m)).astype(noise_table)
        if weights:
            more["weights"] = [None] * n
            for i, s in enumerate(weights):
                if s is None:
                    continue
                full = shape if len(s) == len(shape) else shape[1:]
                w: Any = rng.standard_normal(s).astype(weight_dtype)
                more["weights"][i] = w if s == full else torch.from_numpy(w).expand(full)
        return (inputs, coefficients), more

    return build


def timed(shape: tuple[int, ...], n: int, m: int, name: str = "", **kwargs: Any) -> Case:
    size = int(np.prod(shape))
    return Case(
        f"{n} to {m} {shape}{name}",
        make(shape, n, m, flat=True, **kwargs),
        flops=2.0 * n * m * size,
        bytes=4.0 * (n + m) * size,
        peer=peer,
    )


NOISE: dict[str, Any] = {"seed": 2**40 + 5, "offset": 11}
DOUBLE = (*FLOATS, "float64")
# The noise itself is a float32 number.
NOISY = {"float64": 1e-6}

CASES = [
    Case("one number", make((1,), 1, 1)),
    Case("scalar array", make((), 2, 1)),
    Case("empty", make((0, 3), 2, 2)),
    Case("tail", make((3, 5, 7), 3, 2), dtypes=DOUBLE),
    Case("tail, flat", make((3, 5, 7), 3, 4, flat=True), dtypes=DOUBLE),
    Case("many inputs", make((2, 129), 16, 3)),
    Case("clamp", make((65, 17), 2, 1, clamp=0.5)),
    Case("noise", make((3, 1001), 2, 3, noise_scale=[1.0, 0.0, -0.5], **NOISE), dtypes=DOUBLE,
         tolerance=NOISY),
    Case("noise from an odd start", make((3, 331), 2, 1, noise_scale=[0.7], first_element=1013,
         **NOISE), dtypes=DOUBLE, tolerance=NOISY),
    Case("long", make((1, 70001), 4, 1, noise_scale=[0.3], **NOISE)),
    Case("coefficients of each sample", make((5, 3, 67), 3, 2, table="float64"), dtypes=DOUBLE),
    Case("float32 coefficients of each sample", make((5, 2, 9), 4, 3, table="float32", clamp=1.0),
         # float32 tables are cast like the inputs, and a table is float32 or float64.
         dtypes=("float32",)),
    Case("one number per sample", make((37, 1), 2, 1, table="float64")),
    Case("noise of each sample", make((4, 2, 131), 2, 3, noise_table="float64", **NOISE),
         dtypes=DOUBLE, tolerance=NOISY),
    Case("all of each sample",
         make((4, 300), 2, 1, table="float64", noise_table="float64", **NOISE)),
    Case("weights", make((3, 5, 67), 3, 2, weights=((5, 67), None, (5, 67))), dtypes=DOUBLE),
    Case("expanded weights", make((3, 5, 4, 9), 3, 2,
         weights=((3, 1, 1, 1), (5, 1, 1), (1, 5, 4, 9)))),
    Case("float64 weights", make((3, 5, 67), 2, 2, weights=((5, 67), (1, 1)),
         weight_dtype="float64")),
    Case("float16 weights", make((2, 3, 35), 2, 1, weights=(None, (3, 35)),
         weight_dtype="float16")),
    Case("everything", make((3, 7, 67), 5, 4, table="float64", noise_table="float64", clamp=2.0,
         weights=((7, 67), None, (7, 1)), mixed=(None, "float32", "bfloat16", "float16", None),
         first_element=3, **NOISE), tolerance={"bfloat16": 1e-2}),
    Case("mixed dtypes", make((2, 3, 331), 3, 2, mixed=(None, "bfloat16", "float16"))),
    Case("one float64 input", make((2, 3, 331), 3, 2, mixed=(None, "float64", None),
         noise_scale=[0.5, 1.0], **NOISE)),
    timed((1, 4, 64, 64), 3, 1),
    timed((4, 4, 128, 128), 3, 1),
    timed((8, 3, 256, 256), 4, 2),
    timed((8, 3, 256, 256), 4, 2, " float32 and bfloat16",
          mixed=(None, "bfloat16", "bfloat16", "bfloat16")),
    timed((8, 3, 256, 256), 3, 1, " with weights", weights=((3, 256, 256),) * 2),
    timed((4, 4, 128, 128), 3, 1, " with noise", noise_scale=[0.5], **NOISE),
]  # fmt: skip
