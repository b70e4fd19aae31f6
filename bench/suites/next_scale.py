"""Next-scale decoding end to end against the official loop in plain torch, CoDe and continuous
batching.

The peer is `models.VAR.autoregressive_infer_cfg`, which does what the official code does, in the
same process with the same weights and, where outputs are compared, the same Gumbel noise. VAR-d16
at 256 px has random weights with open gates; the other tables use the embedded digit models. The
VAE decoder is left out everywhere but in the Frechet distances.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pixleap.cli.demo import digit_score, gumbel_noise
from pixleap.decode import CollaborativeDecoder, ContinuousBatcher, NextScaleDecoder
from pixleap.models import VAR, VQVAE, load_var, load_var_draft

OPTIONS: dict[str, Any] = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}
DIGIT_OPTIONS: dict[str, Any] = {"cfg": 1.5, "top_p": 0.96}
CASES = {  # of a depth: weights, batch, rounds
    16: [("float32", 1, 3), ("float32", 8, 1), ("bfloat16", 1, 1), ("bfloat16", 8, 1)],
    30: [("float32", 1, 1), ("bfloat16", 1, 1)],
}
DIGITS = torch.arange(10).repeat_interleave(20)


def random_model(depth: int = 16) -> VAR:
    """VAR at 256 px; official starting weights, but with gates that let the blocks through."""
    torch.manual_seed(0)
    model = VAR(VQVAE(), depth=depth, embed_dim=64 * depth, num_heads=depth)
    with torch.no_grad():
        for block in model.blocks:
            block.get_submodule("ada_lin.1").weight.normal_(std=0.02)
        model.head.weight.mul_(50)
    return model.eval().requires_grad_(False)


@contextmanager
def without_decoder(model: VAR) -> Iterator[None]:
    """The loop returns features in the place of images."""
    decode = model.vae.fhat_to_img
    model.vae.fhat_to_img = lambda f_hat: f_hat  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.vae.fhat_to_img = decode  # type: ignore[method-assign]


def end_to_end() -> list[str]:
    lines = [
        "VAR at 256 px, cfg 1.5, top-k 900, top-p 0.96, seconds per batch. Equal: tokens that are",
        "the same with the same noise.",
        "",
        "| model | weights | batch | pixleap | official loop | ratio | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for depth, cases in CASES.items():
        model = random_model(depth)
        for weights, batch, rounds in cases:
            row = against_official(model, weights, batch, rounds)
            lines.append(f"| d{depth} | {weights} | {batch} | {row}")
            print(lines[-1], flush=True)
        del model
    return [*lines, ""]


def against_official(model: VAR, weights: str, batch: int, rounds: int) -> str:
    decoder = NextScaleDecoder(model, weights)
    labels = torch.arange(batch) * 37
    half = weights == "bfloat16"

    def ours() -> list[torch.Tensor]:
        return decoder.tokens(labels, seed=0, **OPTIONS)[0]

    def peer(draw: Any = None) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=half), without_decoder(model):
            return model.autoregressive_infer_cfg(batch, labels, g_seed=0, draw=draw, **OPTIONS)

    times: list[list[float]] = [[], []]
    results: list[Any] = [None, None]
    for _ in range(rounds):
        for i, f in enumerate((ours, peer)):
            start = time.perf_counter()
            results[i] = f()
            times[i].append(time.perf_counter() - start)
    equal = ""
    if not half and batch == 1:
        noise, drawn = gumbel_noise(model, batch, 0), []

        def draw(logits: torch.Tensor, scale: int) -> torch.Tensor:
            tokens = (logits + noise[scale]).argmax(-1)
            drawn.append(tokens)
            return tokens

        peer(draw)
        same = sum(int((a == b).sum()) for a, b in zip(results[0], drawn, strict=True))
        equal = f"{same} of {batch * model.L}"
    mine, theirs = (statistics.median(t) for t in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return f"{mine:.2f} | {theirs:.2f} | {ratio:.2f}x | {equal} |"


MEMORY = """
import gc, sys
sys.path[:0] = {path!r}
import torch
from suites.next_scale import OPTIONS, NextScaleDecoder, random_model, without_decoder
torch.set_num_threads({threads})
name = {name!r}
model, decoder = random_model(), None
if name.startswith("official"):
    half = name.endswith("bfloat16")
    with torch.autocast("cpu", torch.bfloat16, enabled=half), without_decoder(model):
        {reset}
        model.autoregressive_infer_cfg({batch}, torch.arange({batch}), g_seed=0, **OPTIONS)
else:
    decoder = NextScaleDecoder(model, name.split()[-1])
    del model
    gc.collect()
    {reset}
    decoder.tokens(torch.arange({batch}), seed=0, **OPTIONS)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1])
"""


def memory(threads: int) -> list[str]:
    """Each in a process of its own, whose peak is reset before decoding."""
    lines = [
        "Peak memory of a process that decodes VAR-d16 once, MiB, weights and libraries included;",
        "pixleap's model is freed after packing, as `NextScaleDecoder` allows.",
        "",
        "| batch | official float32 | official bfloat16 | pixleap float32 | bfloat16 | int8 |",
        "|---|---|---|---|---|---|",
    ]
    names = ["official float32", "official bfloat16"]
    names += [f"pixleap {w}" for w in ("float32", "bfloat16", "int8")]
    for batch in (1,):
        peaks = []
        for name in names:
            code = MEMORY.format(
                path=sys.path[:2], threads=threads, name=name, batch=batch,
                reset="open('/proc/self/clear_refs', 'w').write('5')",
            )  # fmt: skip
            out = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            peaks.append(int(out.stdout.split()[-1]) / 1024)
            print(name, f"{peaks[-1]:.0f} MiB", flush=True)
        lines.append(f"| {batch} | {' | '.join(f'{p:.0f}' for p in peaks)} |")
    return [*lines, ""]


def collaboration() -> list[str]:
    large, small = NextScaleDecoder(load_var()), NextScaleDecoder(load_var_draft())
    scales = len(large.packed.patch_nums)
    lines = [
        "CoDe on the digits: the large model draws the first N scales, the small one the rest. 200",
        "digits in one batch; caches are the most that is held at a time.",
        "",
        "| N | ms per digit | caches | accuracy | Frechet distance |",
        "|---|---|---|---|---|",
    ]
    for n in range(scales, -1, -1):
        decoder = CollaborativeDecoder(large, small, n)
        decoder.tokens(DIGITS, seed=1, **DIGIT_OPTIONS)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            _, f_hat = decoder.tokens(DIGITS, seed=0, **DIGIT_OPTIONS)
            times.append(time.perf_counter() - start)
        accuracy, distance = digit_score(large.images(f_hat) * 2 - 1, DIGITS)
        caches = decoder.memory(len(DIGITS))["caches"] / 2**20
        name = f"{n} (large alone)" if n == scales else f"{n} (small alone)" if n == 0 else str(n)
        line = (
            f"| {name} | {statistics.median(times) / len(DIGITS) * 1e3:.2f} | {caches:.0f} MiB | "
            f"{100 * accuracy:.1f} % | {distance:.2f} |"
        )
        print(line, flush=True)
        lines.append(line)
    return [*lines, ""]


def serve(arrivals: np.ndarray, step: Callable[[list[int]], list[int]]) -> tuple[float, float]:
    """Requests per second and mean seconds from arrival to end. `step` gets the requests that have
    arrived, and returns those it has finished; it is called until all are."""
    start, done, latencies = time.perf_counter(), 0, []
    given = 0
    while done < len(arrivals):
        now = time.perf_counter() - start
        new = [i for i in range(given, len(arrivals)) if arrivals[i] <= now]
        given += len(new)
        finished = step(new)
        now = time.perf_counter() - start
        latencies += [now - arrivals[i] for i in finished]
        done += len(finished)
        if not finished and done == given and given < len(arrivals):
            time.sleep(max(0.0, arrivals[given] - now))
    return len(arrivals) / (time.perf_counter() - start), statistics.mean(latencies)


def batching() -> list[str]:
    model = load_var()
    decoder = NextScaleDecoder(model)
    size, count = 8, 200
    plain = time.perf_counter()
    expected = [decoder.tokens(torch.tensor([i % 10]), seed=i, **DIGIT_OPTIONS)[0]
                for i in range(count)]  # fmt: skip
    plain = (time.perf_counter() - plain) / count
    lines = [
        f"Poisson arrivals of {count} digits, up to {size} at a time; loads relative to decoding",
        f"one at a time ({1 / plain:.0f} per second). Static batches wait until {size} requests",
        "are there (or none is to come), or take what is there; each runs to its end. The official",
        "loop is the plain torch one, on what is there. The continuous batcher's tokens of every",
        "request equal those of decoding it alone.",
        "",
        "| load | scheduler | requests per second | mean latency |",
        "|---|---|---|---|",
    ]
    for load in (0.7, 1.2, 4.0):
        gaps = np.random.default_rng(3).exponential(plain / load, count)
        arrivals = np.cumsum(gaps)
        for name in (
            "official loop, static", "static, full", "static, what is there", "continuous",
        ):  # fmt: skip
            waiting: list[int] = []
            seen = [0]
            batcher = ContinuousBatcher(decoder, size)

            def static(new: list[int], name: str = name, waiting: Any = waiting,
                       seen: Any = seen) -> list[int]:  # fmt: skip
                waiting += new
                seen[0] += len(new)
                full = len(waiting) >= size or seen[0] == count
                if not waiting or (name == "static, full" and not full):
                    time.sleep(1e-4)
                    return []
                batch, waiting[:] = waiting[:size], waiting[size:]
                labels = torch.tensor([i % 10 for i in batch])
                if name == "official loop, static":
                    with without_decoder(model):
                        model.autoregressive_infer_cfg(
                            len(batch), labels, g_seed=batch[0], **DIGIT_OPTIONS
                        )
                else:
                    decoder.tokens(labels, seed=batch[0], **DIGIT_OPTIONS)
                return batch

            def continuous(new: list[int], batcher: Any = batcher) -> list[int]:
                for i in new:
                    assert batcher.add(i % 10, seed=i, **DIGIT_OPTIONS) == i
                ended = batcher.step()
                for r in ended:
                    pairs = zip(r.tokens, expected[r.request], strict=True)
                    assert all(torch.equal(a, b) for a, b in pairs)
                return [r.request for r in ended]

            rate, latency = serve(arrivals, continuous if name == "continuous" else static)
            line = f"| {load:.1f} | {name} | {rate:.0f} | {latency * 1e3:.0f} ms |"
            print(line, flush=True)
            lines.append(line)
    return [*lines, ""]


def table(threads: int) -> list[str]:
    title = f"### next-scale decoding, {threads} thread{'s' if threads > 1 else ''}"
    return [
        title,
        "",
        *end_to_end(),
        *memory(threads),
        *collaboration(),
        *batching(),
    ]
