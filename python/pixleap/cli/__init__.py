"""The command line: pixleap demo | sample | fid | info | bench."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from . import fid, sample


def _info(_: argparse.Namespace) -> None:
    import pixleap

    for key, value in pixleap.info().items():
        print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _demo(options: argparse.Namespace) -> None:
    from .demo import run

    run(Path(options.out), seed=options.seed)


def _bench(options: argparse.Namespace) -> None:
    script = Path("bench/run.py")
    if not script.is_file():
        raise SystemExit("pixleap bench: run it in a checkout (bench/run.py is not here)")
    sys.argv = [str(script), *options.arguments]
    runpy.run_path(str(script), run_name="__main__")


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `pixleap` command."""
    parser = argparse.ArgumentParser(
        prog="pixleap", description="The fast path for sampling images."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    info = commands.add_parser("info", help="version, instruction sets, threads, CUDA")
    info.set_defaults(run=_info)
    demo = commands.add_parser("demo", help="sample digits with VAR and TarFlow, plain and native")
    demo.add_argument("--out", default="demo", help="folder for pictures and the table")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    draw = commands.add_parser("sample", help="images of a diffusion model, with any solver")
    sample.add_arguments(draw)
    draw.set_defaults(run=sample.run)
    score = commands.add_parser("fid", help="FID, KID, precision and recall, Inception Score")
    fid.add_arguments(score)
    score.set_defaults(run=fid.run)
    bench = commands.add_parser("bench", help="time the ops against their peers (in a checkout)")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to bench/run.py")
    bench.set_defaults(run=_bench)
    options = parser.parse_args(argv)
    options.run(options)
