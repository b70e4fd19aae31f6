"""Times every case that has a peer, ours and the peer's interleaved in one run.

    python bench/run.py [op | suite ...] [--threads 1 2] [--dtype float32 bfloat16] [--isa avx2]
                        [--save]
    python bench/run.py [op | suite ...] --device cuda [--dtype bfloat16] [--save]
                        [--results FOLDER]

The table gives medians, their ratio, and which share of the measured limit (copy bandwidth, GEMM
rate) our time is. What is timed is compared with the reference first. `--save` writes
bench/results/<op>.md with the command and the machine above the table. Suites (bench/suites/)
compare whole tasks with the libraries that people use for them; they run only where named.

With `--device cuda` arrays, peers and limits are the GPU's: calls are captured in graphs, timed by
events, and a case whose op has no CUDA kernel is left out with a line that says so. Of the suites
`cuda` and `attention_steps` run there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import importlib
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from timing import ROUNDS, device_limits, interleaved, limits, seconds  # noqa: E402

import pixleap as px  # noqa: E402
from pixleap import _native  # noqa: E402

from harness import (  # noqa: E402
    Case,
    as_list,
    assert_close,
    cases_of,
    ops_with_cases,
    run_op,
    run_reference,
    to_device,
    to_torch,
)

DEVICE_SUITES = ("cuda", "attention_steps")


@contextlib.contextmanager
def timing_lock() -> Iterator[None]:
    """One timing run at a time on this machine."""
    with open(Path(tempfile.gettempdir()) / "pixleap.timing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def time_case(op: str, case: Case, dtype: str, device: str = "cpu") -> dict[str, Any]:
    args, kwargs = to_torch(list(case.make(np.random.default_rng(7))), dtype)
    expected = run_reference(op, args, kwargs)  # first: some ops write into their arguments
    if device == "cuda":
        args, kwargs = to_device(op, case, args, kwargs)
    result = run_op(op, args, kwargs)
    assert_close(result, expected, case, dtype)
    if case.has_out:
        out = result if isinstance(result, (list, tuple)) else as_list(result)[0]
        kwargs_out = {**kwargs, "out": out}
    else:
        kwargs_out = kwargs
    front, peer = getattr(px.ops, op), case.peer
    assert peer is not None
    with torch.no_grad():
        ours, theirs = interleaved(
            lambda: front(*args, **kwargs_out), lambda: peer(*args, **kwargs), device=device
        )
    ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    return {"ours": statistics.median(ours), "peer": statistics.median(theirs), "ratio": ratio}


def overhead_table(threads: int) -> list[str]:
    """A call that does nothing, with four arrays, through a Python function."""
    native = _native.noop

    def front(a: Any, b: Any, c: Any, d: Any) -> None:
        native(a, b, c, d)

    tensors = [torch.zeros(3) for _ in range(4)]
    arrays = [np.zeros(3, np.float32) for _ in range(4)]
    rows = []
    for name, four in (("torch", tensors), ("NumPy", arrays)):
        times = [seconds(lambda four=four: front(*four), 20_000) for _ in range(ROUNDS)]
        with torch.no_grad():
            quiet = [seconds(lambda four=four: front(*four), 20_000) for _ in range(ROUNDS)]
        rows.append(
            f"| no-op, 4 {name} arrays | {statistics.median(times) * 1e9:.0f} ns "
            f"| {min(times) * 1e9:.0f} ns | {statistics.median(quiet) * 1e9:.0f} ns |"
        )
    head = ["| call | median | best | median under no_grad |", "|---|---|---|---|"]
    return ["### overhead", "", *head, *rows, ""]


def op_table(
    op: str, threads: int, dtype: str, bandwidth: float, rate: float, device: str = "cpu"
) -> list[str]:
    where = "CUDA" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    rows = [
        f"### {op}, {dtype}, {where}",
        "",
        "| case | pixleap | peer | ratio | GB/s | GFLOP/s | share of limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases_of(op):
        own = (
            case.dtypes[0] if len(case.dtypes) == 1 else dtype
        )  # an op of one dtype is timed in it
        if case.peer is None or own not in case.dtypes:
            continue
        try:
            t = time_case(op, case, own, device)
        except RuntimeError as error:
            if device != "cuda":
                raise
            # One op or peer that the device cannot run does not end the others' tables.
            print(f"{op}, {case.name}: left out: {str(error).splitlines()[0]}", flush=True)
            continue
        moved = case.bytes * getattr(torch, own).itemsize / 4
        floor = max(moved / bandwidth, case.flops / rate)
        rows.append(
            f"| {case.name} | {t['ours'] * 1e6:.1f} us | {t['peer'] * 1e6:.1f} us "
            f"| {t['ratio']:.2f}x | {moved / t['ours'] / 1e9:.1f} "
            f"| {case.flops / t['ours'] / 1e9:.1f} | {100 * floor / t['ours']:.0f} % |"
        )
        print(rows[-1], flush=True)
    return [*rows, ""] if len(rows) > 4 else []


def device_table(op: str, dtype: str, bandwidth: float, rate: float) -> list[str]:
    if op == "cuda":
        rows = importlib.import_module("suites.cuda").table((bandwidth, rate))
    elif op in DEVICE_SUITES:
        rows = importlib.import_module(f"suites.{op}").table(1, "cuda")
    else:
        rows = op_table(op, 1, dtype, bandwidth, rate, "cuda")
    head = (
        f"Measured limits: copy {bandwidth / 1e9:.0f} GB/s, "
        f"{dtype} GEMM {rate / 1e12:.1f} TFLOP/s. "
        "Inputs are those of the call before and may lie in L2.\n"
    )
    return [head, *rows] if rows else []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="pixleap bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "ops", nargs="*", help="names of ops or suites, or 'overhead'; default all ops"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="one on CUDA")
    parser.add_argument("--isa", choices=px.available_isas())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--save", action="store_true", help="write <op>.md into the results folder")
    parser.add_argument("--results", type=Path, help="default bench/results")
    options = parser.parse_args(argv)
    on_device = options.device == "cuda"
    results = options.results or ROOT / "bench" / "results" / ("cuda" if on_device else "")
    if on_device and len(options.dtype) > 1:
        parser.error("--device cuda times one dtype, whose GEMM rate is the limit")
    if on_device and not (torch.cuda.is_available() and _native.built_with_cuda):
        parser.error("--device cuda needs an NVIDIA GPU, torch with CUDA and a build with CUDA")
    every = ["overhead", *ops_with_cases()]
    suites = sorted(p.stem for p in (ROOT / "bench" / "suites").glob("[a-z]*.py"))
    known = [*every, *suites]
    for op in options.ops:
        if op not in known:
            parser.error(f"unknown op {op!r}; known: {', '.join(known)}")
        if on_device and op not in (*every[1:], *DEVICE_SUITES):
            parser.error(f"--device cuda times ops and {' and '.join(DEVICE_SUITES)}, not {op!r}")
        if op == "cuda" and not on_device:
            parser.error("suite 'cuda' needs --device cuda")
    if options.isa:
        px.set_isa(options.isa)
    command = "python bench/run.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    machine = f"{cpu_name()}, ISA {px.isa()}"
    if on_device:
        every.remove("overhead")
        machine = torch.cuda.get_device_name()
        [dtype] = options.dtype
        device_rates = device_limits(getattr(torch, dtype))
        bandwidth, rate = device_rates
        print(f"copy {bandwidth / 1e9:.0f} GB/s, {dtype} GEMM {rate / 1e12:.1f} TFLOP/s")
    for op in options.ops or every:
        lines = []
        with timing_lock():
            if on_device:
                lines = device_table(op, dtype, *device_rates)
            for threads in [] if on_device else options.threads:
                px.set_num_threads(threads)
                torch.set_num_threads(threads)
                if op == "overhead":
                    lines += overhead_table(threads) if threads == options.threads[0] else []
                    continue
                if op in suites:
                    lines += importlib.import_module(f"suites.{op}").table(threads)
                    continue
                bandwidth, rate = limits()
                lines.append(
                    f"Measured limits: copy {bandwidth / 1e9:.1f} GB/s, "
                    f"float32 GEMM {rate / 1e9:.0f} GFLOP/s.\n"
                )
                for dtype in options.dtype:
                    lines += op_table(op, threads, dtype, bandwidth, rate)
        head = [
            f"`{command}`",
            "",
            f"{datetime.date.today()}, {machine}, torch {torch.__version__}, "
            f"pixleap {px.__version__}. Medians of {ROUNDS} interleaved rounds; outputs checked "
            "against the float64 reference.",
            "",
        ]
        print("\n".join(lines))
        if options.save and lines:
            results.mkdir(parents=True, exist_ok=True)
            (results / f"{op}.md").write_text("\n".join([*head, *lines]))


if __name__ == "__main__":
    main()
