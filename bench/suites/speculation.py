"""Speculative next-scale decoding of the embedded digit models: what drafts are worth."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from suites.next_scale import DIGIT_OPTIONS

from pixleap.decode import NextScaleDecoder, SpeculativeDecoder
from pixleap.models import VAR, load_var, load_var_draft
from pixleap.models.var_quantised import emulate_quantised_weights


def drafts(target: VAR) -> dict[str, Any]:
    return {
        "small model": load_var_draft(),
        "int8 copy": NextScaleDecoder(target, "int8"),
        "int4 copy, emulated": emulate_quantised_weights(target, 4),
        "bfloat16 copy": NextScaleDecoder(target, "bfloat16"),
    }


def table(threads: int) -> list[str]:
    target = load_var()
    decoder = NextScaleDecoder(target)
    scales = len(target.patch_nums)
    heads = " | ".join(f"{n}x{n}" for n in target.patch_nums[:-1])
    lines = [
        f"### speculative next-scale decoding, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "Digits, one at a time (mean of 100). Acceptance: share of drafted scales that were kept",
        "whole, of those reached; int4 is emulated (float32 speed). Up to three scales",
        "are drafted before each pass; time is of plain decoding over that of the row, and for",
        "`auto` of the number that its measured plan chose.",
        "",
        f"| draft | rule | {heads} | target passes of {scales} | plain / time | auto |",
        "|---" * (scales + 4) + "|",
    ]
    labels = torch.arange(100) % 10
    for name, draft in drafts(target).items():
        for rule, mode in (("rejection", "token"), ("rejection", "joint"), ("coupled", "token")):
            fixed = SpeculativeDecoder(decoder, draft, rule=rule, mode=mode, drafted=3)
            auto = SpeculativeDecoder(decoder, draft, rule=rule, mode=mode)
            auto.calibrate(labels[:1], **DIGIT_OPTIONS)
            passes, kept, tried = 0, [0] * scales, [0] * scales
            spent: list[list[float]] = [[], [], []]
            for i, label in enumerate(labels):
                one = label[None]
                options = {"seed": i, **DIGIT_OPTIONS}
                results = []
                for j, f in enumerate((decoder.tokens, fixed.tokens, auto.tokens)):
                    start = time.perf_counter()
                    results.append(f(one, **options))
                    spent[j].append(time.perf_counter() - start)
                passes += results[1].target_passes
                kept = [a + b for a, b in zip(kept, results[1].accepted, strict=True)]
                tried = [a + b for a, b in zip(tried, results[1].drafted, strict=True)]
                if rule == "coupled":
                    plain = zip(results[0][0], results[1].tokens, results[2].tokens, strict=True)
                    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in plain)
            shares = " | ".join(
                f"{k / t:.2f}" if t else "-" for k, t in zip(kept[:-1], tried[:-1], strict=True)
            )
            ratios = [
                statistics.median(a / b for a, b in zip(spent[0], spent[j], strict=True))
                for j in (1, 2)
            ]
            what = rule if rule == "coupled" else f"{rule}, {mode}"
            line = (
                f"| {name} | {what} | {shares} | {passes / len(labels):.2f} | {ratios[0]:.2f}x | "
                f"{ratios[1]:.2f}x |"
            )
            print(line, flush=True)
            lines.append(line)
    return [*lines, ""]
