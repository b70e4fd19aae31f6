"""`pixleap sample`: images of a diffusion model with any solver."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

OPTION_HELP = "option of the solver or the plan, as eta=0.5 (may be given several times)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="digits",
        help="'digits' (embedded) or a DiT checkpoint, official names (default: %(default)s)",
    )
    parser.add_argument("--solver", default="dpmpp_2m", help="'list' prints all of them")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--grid", default="lu", help="of noise levels: karras, lu, trailing, ...")
    parser.add_argument("--labels", default="0-9", help="as 3, 0-9 or 1,5,7 (default: 0-9)")
    parser.add_argument("--per-label", type=int, default=10, help="images of each (default: 10)")
    parser.add_argument("--guidance", type=float, default=1.5, help="scale; 1: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help=OPTION_HELP)
    parser.add_argument(
        "--out", type=Path, default=Path("samples.png"), help=".png: one picture, .npy: the array"
    )


def parse_labels(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]."""
    labels: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise SystemExit(f"pixleap sample: --labels expected as 3, 0-9 or 1,5,7, got {text!r}")
        labels += range(int(first), int(last or first) + 1)
    if not labels:
        raise SystemExit(f"pixleap sample: --labels {text!r} names none")
    return labels


def parse_option(text: str) -> tuple[str, Any]:
    """ "eta=0.5" -> ("eta", 0.5); numbers, True, False and words."""
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise SystemExit(f"pixleap sample: --option expected as name=value, got {text!r}")
    if value in ("True", "False"):
        return name, value == "True"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def run(options: argparse.Namespace) -> None:
    from .. import solvers

    if options.solver == "list":
        for name in solvers.solver_names():
            base = solvers.METHODS[solvers.ALIASES.get(name, (name,))[0]]
            print(f"{name:24} {base.source}")
        return
    if options.out.suffix not in (".png", ".npy"):
        raise SystemExit(f"pixleap sample: --out expected a .png or .npy file, got {options.out}")
    try:
        _sample(options)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"pixleap sample: {error}") from None


def _sample(options: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from rich.progress import Progress

    from ..decode import diffusion
    from ..models import load_digits_dit, load_dit
    from .pictures import save_grid

    labels = parse_labels(options.labels)
    extra = dict(parse_option(text) for text in options.option)
    model = load_digits_dit() if options.model == "digits" else load_dit(options.model)
    y = torch.tensor(labels).repeat_interleave(options.per_label)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{options.solver}, {options.steps} steps")

        def tick(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        start = time.perf_counter()
        images = diffusion(
            model,
            y,
            solver=options.solver,
            steps=options.steps,
            sigmas=options.grid,
            guidance_scale=options.guidance,
            seed=options.seed,
            progress=tick,
            **extra,
        )
        seconds = time.perf_counter() - start
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".npy":
        np.save(options.out, images.numpy())
    else:
        save_grid(options.out, images / 2 + 0.5, options.per_label)
    print(f"{len(y)} images in {seconds:.2f} s: {options.out}")
