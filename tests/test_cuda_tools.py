"""tools/cuda_resources on recorded text, the arguments and stages of bench/gpu/run_all.sh, and the
tables that it asks for, small and on the CPU."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RUN_ALL = ROOT / "bench" / "gpu" / "run_all.sh"

USAGE = """
Fatbin elf code:
================
arch = sm_80
Resource usage:
 Common:
  GLOBAL:0
 Function _Z1kv:
  REG:22 STACK:0 SHARED:2304 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z1gv:
  REG:255 STACK:48 SHARED:0 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
arch = sm_90a
 Function _Z1kv:
  REG:24 STACK:0 SHARED:2304 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
\tcode for sm_80
\t\tFunction : _Z1kv
        /*0000*/  LDG.E.128 R4, [R2] ;
\t\tFunction : _Z1gv
        /*0000*/  EXIT ;
\tcode for sm_90a
\t\tFunction : _Z1kv
        /*0000*/  LDG.E R4, [R2] ;
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = str(ROOT / "tools" / "cuda_resources")
    loader = importlib.machinery.SourceFileLoader("cuda_resources", path)
    spec = importlib.util.spec_from_loader("cuda_resources", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def table_of(tool: ModuleType) -> dict:
    return {(name, arch): usage for name, arch, usage in tool.parse_usage(USAGE)}


def test_usage_is_read_and_written(tool: ModuleType) -> None:
    table = table_of(tool)
    assert table == {
        ("_Z1kv", "sm_80"): (22, 0, 2304),
        ("_Z1gv", "sm_80"): (255, 48, 0),
        ("_Z1kv", "sm_90a"): (24, 0, 2304),
    }
    assert tool.read_table(tool.write_table(table, "command")) == table


def test_check_finds_spills_and_unknown_kernels(tool: ModuleType) -> None:
    known = table_of(tool)
    assert tool.compare(known, known, 0) == []
    now = dict(known)
    now["_Z1kv", "sm_80"] = tool.Usage(30, 8, 2304)
    now["_Z1kv", "sm_90a"] = tool.Usage(33, 0, 2304)
    now["_Z3newv", "sm_80"] = tool.Usage(10, 0, 0)
    del now["_Z1gv", "sm_80"]
    faults = tool.compare(known, now, 8)
    assert len(faults) == 4
    for part in (
        "8 stack bytes, were 0",
        "33 registers, were 24",
        "not in the table",
        "not in the",
    ):
        assert any(part in fault for fault in faults), (part, faults)
    # A build for one architecture is compared with its part of the table.
    assert tool.compare(known, {("_Z1kv", "sm_90a"): tool.Usage(24, 0, 2304)}, 0) == []


def test_instructions_are_looked_for(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sass = {(name, arch): body for name, arch, body in tool.parse_sass(SASS)}
    assert len(sass) == 3
    monkeypatch.setattr(tool, "EXPECTED", [("_Z1kv", r"LDG\.E\.128", "why"), ("none", "X", "y")])
    [narrow, unknown] = tool.missing_instructions(sass)
    assert "sm_90a" in narrow and "LDG" in narrow
    assert "no kernel matches none" in unknown
    monkeypatch.setattr(tool, "EXPECTED", [("_Z1kv@sm_80", r"LDG\.E\.128", "why")])
    assert tool.missing_instructions(sass) == []
    monkeypatch.setattr(tool, "EXPECTED", [("_Z1kv@sm_70", "X", "why")])
    assert "no kernel matches" in tool.missing_instructions(sass)[0]


def test_some_kernels_must_not_spill(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "NO_STACK", "_Z1[gk]v")
    [fault] = tool.forbidden_stack(table_of(tool))
    assert fault == "_Z1gv (sm_80): 48 stack bytes, expected none"


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void pixleap::(anonymous namespace)::k<float, double>(pixleap::P)", "k<float, double>"),
        ("void pixleap::_GLOBAL__N__12ab_3_k_cu_9f::k<(int)16>(P)", "k<16>"),
        ("pixleap::_GLOBAL__N__12ab_3_k_cu_9f::joint_kernel(pixleap::P)", "joint_kernel"),
        ("void k<pixleap::(anonymous namespace)::Rule>(P)", "k<Rule>"),
    ],
)
def test_short_names(tool: ModuleType, demangled: str, short: str) -> None:
    assert tool.short_name(demangled) == short


def run_all(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(RUN_ALL), *args], capture_output=True, text=True, timeout=60)


def test_dry_run_lists_the_stages() -> None:
    done = run_all("--dry-run", "--pybind11", "/p", "--archs", "80-real", "--limit", "test=7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    stages = [line.split(" ", 1)[0] for line in lines]
    assert list(dict.fromkeys(stages)) == ["build", "test", "sanitize", "bench"]
    assert "-DPIXLEAP_CUDA_ARCHITECTURES=80-real" in lines[0] and "-Dpybind11_DIR=/p" in lines[0]
    assert any(line.startswith("test (7s)") and "-m cuda" in line for line in lines)
    assert {"memcheck", "racecheck"} <= {w for line in lines for w in line.split()}
    assert sum("--device cuda" in line for line in lines) == 2


def test_limits_stay_under_nine_minutes() -> None:
    total = {
        line.split("(")[0]: int(line.split("(")[1].split("s)")[0])
        for line in run_all("--dry-run").stdout.splitlines()
    }
    assert sum(total.values()) <= 540


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stages", "build,nothing"], "unknown stage 'nothing'"),
        (["--limit", "bench=soon"], "--limit expects STAGE=SECONDS"),
        (["--jobs", "many"], "--jobs expects a number"),
        (["--out"], "--out expects a value"),
        (["--fast"], "unknown argument '--fast'"),
    ],
)
def test_bad_arguments(args: list[str], message: str) -> None:
    done = run_all(*args)
    assert done.returncode == 2 and message in done.stderr


def test_a_failing_stage_does_not_stop_the_next(tmp_path: Path) -> None:
    done = run_all("--stages", "test,bench", "--python", "false", "--out", str(tmp_path))
    assert done.returncode == 1
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary] == [
        ["test", "test"],
        ["bench", "bench_bfloat16"],
        ["bench", "bench_float32"],
    ]
    assert all("FAILED (1)" in line for line in summary)


def test_every_op_with_a_kernel_is_timed() -> None:
    benches = [x for x in run_all("--dry-run").stdout.splitlines() if x.startswith("bench")]
    kernels = {path.parent.name for path in (ROOT / "csrc" / "ops").glob("*/*.cu")}
    for line in benches:
        words = line.split("run.py ")[1].split(" --device")[0].split()
        assert set(words) - {"cuda", "attention_steps"} == kernels
    assert " cuda attention_steps " in benches[0] and "attention_steps" not in benches[1]


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]
    torch.set_num_threads(1)
    try:
        return importlib.import_module("suites.cuda")
    finally:
        del sys.path[:2]


def test_whole_tasks_are_checked_and_timed(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = 1e10, 1e11
    rows = [
        suite.solver_step("cpu", limits, torch.bfloat16, 1 << 12),
        suite.long_cache("cpu", limits, torch.float32, 40),
        suite.trace_of_root("cpu", limits, 24),
    ]
    for row, share in zip(rows, ("% of a copy", "% of a copy", "times a product"), strict=True):
        assert row.count("|") == 7 and share in row, row
    right = suite.px.ops.lincomb
    monkeypatch.setattr(
        suite.px.ops, "lincomb", lambda x, c, out: right(x, [2 * n for n in c], out=out)
    )
    with pytest.raises(AssertionError):
        suite.solver_step("cpu", limits, torch.float32, 1 << 12)


def test_a_task_that_fails_does_not_end_the_table(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> str:
        raise RuntimeError("no device\nmore")

    monkeypatch.setattr(suite, "solver_step", refused)
    monkeypatch.setattr(suite, "long_cache", lambda *args: "| a row |")
    monkeypatch.setattr(suite, "trace_of_root", refused)
    lines = suite.table((1.0, 1.0))
    assert sum("left out: RuntimeError: ['no device']" in x for x in lines) == 3
    assert lines.count("| a row |") == 6
