"""CRM and IGM against their definition with singular values in float64, and counted sweeps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pixleap.decode import flow_metrics  # noqa: E402
from pixleap.models import TarFlow, load_tarflow  # noqa: E402


def random_flow(nvp: bool = True, classes: int = 4) -> TarFlow:
    torch.manual_seed(1)
    model = TarFlow(1, 6, 2, 32, 3, 2, head_dim=16, num_classes=classes, nvp=nvp)
    for i, block in enumerate(model.blocks):
        torch.nn.init.normal_(block.proj_out.weight, std=0.02 * (i + 1))
        if block.class_embed is not None:
            torch.nn.init.normal_(block.class_embed)
    return model.eval().requires_grad_(False)


def norm(matrix: Any) -> float:
    """Largest singular value."""
    return float(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[0])


def params(block: Any, x: Any, labels: Any) -> tuple[Any, Any]:
    """Log-scales and shifts of a block at x, in its order, zero for the first token."""
    h = block.proj_in(x) + block.order(block.pos_embed, dim=0)
    embed = block.condition(labels)
    h = h if embed is None else h + embed
    for layer in block.attn_blocks:
        h = layer(h)
    a, b = (torch.nn.functional.pad(p[:, :-1], (0, 0, 1, 0)) for p in block.affine(h))
    return a, b


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 3, 1, -1, 2])])
@pytest.mark.parametrize("nvp", [True, False])
def test_against_the_definition(labels: Any, nvp: bool) -> None:
    model = random_flow(nvp)
    images = torch.rand(5, 1, 6, 6) * 2 - 1
    found = flow_metrics(model, images, labels, tol=None)
    model, x, total = model.double(), model.patchify(images).double(), 0.0
    for block, got in zip(model.blocks, found.blocks, strict=True):
        ordered = block.order(x)
        a, b = params(block, ordered, labels)
        z = (ordered - b) * (-a).exp()
        x = block(x, labels)[0]
        torch.testing.assert_close(block.order(z), x)
        halves = block.proj_out.weight.chunk(2)
        crm = norm(((-a).exp() * ordered).mean(0)) * norm(halves[0]) + norm(halves[1])
        assert got.crm == pytest.approx(crm if nvp else norm(block.proj_out.weight), rel=1e-4)
        total += got.crm
        zero = torch.nn.functional.pad(z[:, :1], (0, 0, 0, 8))
        for name, guess in (("z", z), ("zero", zero)):
            a, b = params(block, guess, labels)
            wrong = z * a.exp() + b - ordered
            assert got.igm[name] == pytest.approx(norm(wrong.mean(0)), rel=1e-3)
        assert got.sweeps is None
    assert [b.crm_share for b in found.blocks] == [b.crm / total for b in found.blocks]
    better = ["z" if b.igm["z"] <= b.igm["zero"] else "zero" for b in found.blocks]
    assert found.guesses == better[::-1]


def test_sweeps_are_counted() -> None:
    """After as many sweeps nothing moves by more than tol; after one fewer something does."""
    model = random_flow(classes=0)
    images = torch.rand(3, 1, 6, 6) * 2 - 1
    tol = 1e-3
    found = flow_metrics(model, images, tol=tol)
    x = model.patchify(images)
    for block, got in zip(model.blocks, found.blocks, strict=True):
        x = block(x)[0]
        z = block.order(x)
        for name, guess in (("z", z), ("zero", torch.nn.functional.pad(z[:, :1], (0, 0, 0, 8)))):
            moved = []
            while not moved or moved[-1] > tol:
                a, b = params(block, guess, None)
                new = z * a.exp() + b
                moved.append(float((new - guess).abs().max()))
                guess = new
            assert got.sweeps is not None and got.sweeps[name] == len(moved) > 1
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert found.to_dict()["blocks"][0]["igm"].keys() == {"z", "zero"}


def test_embedded_flow() -> None:
    """The block that takes the most sweeps is the one that CRM calls tough."""
    model = load_tarflow()
    z = torch.randn(40, *model.var.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    found = flow_metrics(model, model.reverse(z, labels), labels)
    sweeps = [b.sweeps["z"] for b in found.blocks if b.sweeps]
    shares = [b.crm_share for b in found.blocks]
    assert shares.index(max(shares)) == sweeps.index(max(sweeps)) == 3
    assert max(shares) > 0.4 and sum(shares) == pytest.approx(1)
    assert max(sweeps) < 48  # of as many tokens to be found


def test_bad_arguments() -> None:
    model = random_flow()
    images = torch.zeros(2, 1, 6, 6)
    for bad, options, message in (
        (images[0], {}, r"argument 'images' expected shape \(B, 1, 6, 6\) with B >= 1"),
        (images[:, :, :5], {}, "argument 'images' expected shape"),
        (images[:0], {}, "argument 'images' expected shape"),
        (images * torch.nan, {}, "argument 'images' expected finite values"),
        (images, {"labels": torch.tensor([1])}, "argument 'labels' expected shape"),
        (images, {"labels": torch.tensor([1, 4])}, "expected numbers below 4, got 4"),
        (images, {"tol": 0.0}, "argument 'tol' expected a number > 0 or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            flow_metrics(model, bad, **options)
