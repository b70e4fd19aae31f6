"""Native names == pixleap.ops == pixleap.reference == tests/cases: an op is whole or absent."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import pixleap as px
from pixleap import _native

from harness import cases_of, ops_with_cases

OPS = sorted(_native.signatures)
ROOT = Path(__file__).resolve().parent.parent


def test_names_agree() -> None:
    assert sorted(px.ops.__all__) == OPS
    assert sorted(px.reference.__all__) == OPS
    assert ops_with_cases() == OPS


@pytest.mark.parametrize("op", OPS)
def test_signatures_agree(op: str) -> None:
    native = inspect.signature(getattr(px.ops, op)).parameters
    reference = inspect.signature(getattr(px.reference, op)).parameters
    assert [n for n in native if n != "out"] == [n for n in reference if n != "out"]


@pytest.mark.parametrize("op", OPS)
def test_is_documented_and_cased(op: str) -> None:
    doc = getattr(px.ops, op).__doc__ or ""
    for part in ("Args:", "Returns:", "Raises:"):
        assert part in doc, f"{op} lacks '{part}'"
    assert (ROOT / "csrc" / "ops" / op / "README.md").is_file()
    assert len(cases_of(op)) >= 4
    assert any(case.peer for case in cases_of(op)), f"{op} has no case that is timed"


def test_every_folder_is_registered() -> None:
    assert sorted(p.name for p in (ROOT / "csrc" / "ops").iterdir() if p.is_dir()) == OPS


# Ops that have no CUDA kernel, and why.
WITHOUT_CUDA = {
    "matrix_sqrt": "LAPACK's eigenvectors; on a GPU metrics take pixleap.metrics.polar",
    "nuclear_norm": "LAPACK's singular values; on a GPU metrics take pixleap.metrics.polar",
    "trace_sqrt_product": "LAPACK's factors; on a GPU metrics take pixleap.metrics.polar",
}
# Ops that are fronts of another op's kernel.
FRONTS = {"gumbel_softmax": "sample_tokens", "token_probabilities": "sample_tokens"}


@pytest.mark.parametrize("op", OPS)
def test_has_a_cuda_kernel(op: str) -> None:
    folder = ROOT / "csrc" / "ops" / FRONTS.get(op, op)
    kernel, entry = folder / f"{folder.name}.cu", f"{folder.name}_cuda("
    if op in WITHOUT_CUDA:
        assert not kernel.exists(), f"{op} has a CUDA kernel: take it off WITHOUT_CUDA"
        return
    assert kernel.is_file(), f"{op} has no CUDA kernel ({kernel.relative_to(ROOT)})"
    assert entry in kernel.read_text()
    front = (folder / f"{folder.name}.cpp").read_text()
    assert "_CUDA(" in front or "PIXLEAP_CUDA_KERNEL(" in front, (
        f"{op}: its front does not name the CUDA kernel"
    )
    if op in FRONTS:
        own = (ROOT / "csrc" / "ops" / op / f"{op}.cpp").read_text()
        assert f"run_{FRONTS[op]}(" in own
