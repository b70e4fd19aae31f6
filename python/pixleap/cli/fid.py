"""`pixleap fid A B`: FID and its kin between two sets of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from .fid_inputs import Folder, Input, InputError, Statistics, image_batches, open_input
from .ranks import Ranks

METRICS = ("fid", "kid", "prdc", "is")
RESIZE = ("tf1", "pytorch_fid", "antialias", "pil_bicubic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("a", metavar="A", type=Path,
        help="generated images: a folder (searched recursively), statistics (.npz with mu and "
        "sigma) or features (.npy, .npz)")  # fmt: skip
    add("b", metavar="B", type=Path, nargs="?", help="the reference, likewise")
    add("--features", metavar="NAME", default="inception",
        help="inception (default), digits, efficientnet_lite0, or module:function, from uint8 "
        "(B, 3, H, W) arrays to (B, d)")  # fmt: skip
    add("--weights", metavar="PATH", type=Path,
        help="Inception's weight file, pt_inception-2015-12-05-6726825d.pth; without it, torch's "
        "cache is looked in")  # fmt: skip
    add("--dims", type=int, choices=(64, 192, 768, 2048), help="Inception's tap (2048)")
    add("--resize", choices=RESIZE,
        help="how images come to Inception's size: tf1 (default; the original, torch-fidelity), "
        "pytorch_fid, antialias (torchmetrics), pil_bicubic (clean-fid)")  # fmt: skip
    add("--metrics", metavar="LIST", default=None,
        help="of fid, kid, prdc (precision, recall, density, coverage), is (Inception Score of "
        "A), separated by commas (fid)")  # fmt: skip
    add("--save-stats", metavar="F", type=Path,
        help="write the statistics of A to F (.npz with mu, sigma); B may be left out")  # fmt: skip
    add("--batch", metavar="N", type=int, default=50, help="images at a time (50)")
    add("--num", metavar="N", type=int, help="the first N images or features of each side")
    add("--device", help="of the feature network (cuda where there is one, else cpu)")
    add("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Prints the scores; what the user can mend ends with one line on stderr and exit code 2."""
    ranks = Ranks.join()
    try:
        report = evaluate(options, ranks)
    except InputError as error:
        if ranks.rank == 0:
            print(f"pixleap fid: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        ranks.leave()
    if ranks.rank == 0:
        show(report, options.json)


@dataclass
class Side:
    """What is known of A or of B."""

    source: Input
    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None  # of samples; unknown for statistics
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    moments: Any = None

    def described(self) -> dict[str, Any]:
        kind = type(self.source).__name__.lower()
        return {"path": str(self.source.path), "kind": kind, "count": self.count}


@dataclass
class Report:
    """The scores, and what they are of."""

    sides: dict[str, dict[str, Any]]
    features: str | None
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate(options: argparse.Namespace, ranks: Ranks) -> Report:
    """Every process takes its share of the images; the scores are complete on rank 0.

    Raises:
        InputError: on all processes alike.
    """
    wanted = _wanted(options)
    paths = {"A": options.a, "B": options.b}
    inputs = {k: open_input(p, options.num) for k, p in paths.items() if p is not None}
    _check_needs(wanted, inputs, options)
    extractor = None
    if any(isinstance(source, Folder) for source in inputs.values()):
        extractor = _extractor(options, ranks)
    if "is" in wanted and not hasattr(extractor, "with_probabilities"):
        raise InputError(f"is: {options.features} gives no class probabilities")
    sides = {}
    for name, source in inputs.items():
        keep = bool({"kid", "prdc"} & wanted)
        sides[name] = collect(
            source, extractor, ranks, options.batch,
            keep_features=keep, probabilities="is" in wanted and name == "A",
        )  # fmt: skip
    report = Report(
        {name: side.described() for name, side in sides.items()},
        getattr(extractor, "name", None),
    )
    if ranks.rank == 0:
        _score(wanted, sides, report)
        if options.save_stats is not None:
            save_statistics(sides["A"].moments, options.save_stats)
    return report


def _wanted(options: argparse.Namespace) -> set[str]:
    """The metrics asked for; without B none but what A alone gives."""
    text = options.metrics
    if text is None:
        text = "fid" if options.b is not None else ""
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := wanted - set(METRICS):
        raise InputError(f"--metrics: expected some of {', '.join(METRICS)}, got {min(unknown)!r}")
    if options.b is None:
        if wanted - {"is"}:
            raise InputError(f"{', '.join(sorted(wanted - {'is'}))}: needs a second set, B")
        if not wanted and options.save_stats is None:
            raise InputError("expected a second set, B, or --save-stats, or --metrics is")
    return wanted


def _check_needs(
    wanted: set[str], inputs: Mapping[str, Input], options: argparse.Namespace
) -> None:
    """Before any work is done."""
    if options.batch < 1 or (options.num is not None and options.num < 2):
        raise InputError("--batch expects at least 1, --num at least 2")
    for metric in sorted(wanted & {"kid", "prdc"}):
        for source in inputs.values():
            if isinstance(source, Statistics):
                raise InputError(f"{source.path}: {metric} needs features, not statistics")
    if "is" in wanted and not isinstance(inputs["A"], Folder):
        raise InputError(f"{inputs['A'].path}: is needs images")
    if options.save_stats is not None:
        target = options.save_stats
        if isinstance(inputs["A"], Statistics):
            raise InputError(f"{inputs['A'].path}: these are statistics already (--save-stats)")
        if target.suffix != ".npz":
            raise InputError(f"{target}: --save-stats expects a name ending in .npz")
        if not target.parent.is_dir():
            raise InputError(f"{target.parent}: no such folder (--save-stats)")


def _extractor(options: argparse.Namespace, ranks: Ranks) -> Any:
    features = metrics.features
    try:
        import PIL.Image  # noqa: F401

        device = options.device
        if options.features in features.NAMES and device is None:
            import torch

            device = f"cuda:{ranks.local_rank}" if torch.cuda.is_available() else "cpu"
        return features.resolve(
            options.features,
            weights=options.weights,
            dims=options.dims,
            resize=options.resize,
            device=device,
        )
    except ModuleNotFoundError as error:
        if error.name in ("torch", "PIL"):
            raise InputError(f"{error} (pip install 'pixleap[fid]')") from error
        raise InputError(str(error)) from error
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise InputError(str(error)) from error


def collect(
    source: Input,
    extractor: Callable[[Any], np.ndarray] | None,
    ranks: Ranks,
    batch: int,
    keep_features: bool = False,
    probabilities: bool = False,
) -> Side:
    """Moments of one side, over all processes; features and probabilities only where kept."""
    if isinstance(source, Statistics):
        return Side(source, source.mu, source.sigma)
    parts: list[np.ndarray] = []
    chances: list[np.ndarray] = []
    moments: Any = None
    error: InputError | None = None
    try:
        for x, p in _features(source, extractor, ranks, batch, probabilities):
            moments = moments if moments is not None else metrics.FeatureMoments(x.shape[1])
            _update(moments, x, source)
            if keep_features:
                parts.append(x)
            if p is not None:
                chances.append(p)
    except InputError as problem:
        error = problem
    # Nobody may wait in a reduction for a process that has given up, or has no image to tell d.
    met = ranks.gather((error, None if moments is None else moments.d))
    for failed, _ in met:
        if failed is not None:
            raise failed
    dims = sorted({d for _, d in met if d is not None})
    if len(dims) != 1:
        raise InputError(f"{source.path}: features of {len(dims)} sizes: {dims}")
    moments = moments if moments is not None else metrics.FeatureMoments(dims[0])
    if ranks.size > 1:
        moments.all_reduce()
    count = int(moments.count)
    if count < 2:
        raise InputError(f"{source.path}: a covariance needs at least two samples")
    mu, sigma = moments.statistics()
    side = Side(source, mu, sigma, count, moments=moments)
    if keep_features:
        side.features = _joined(ranks, parts, dims[0])
    if probabilities:
        side.probabilities = _joined(ranks, chances, chances[0].shape[1] if chances else 0)
    return side


def _update(moments: Any, x: np.ndarray, source: Input) -> None:
    try:
        moments.update(x)
    except ValueError as error:  # values that are not finite, or too large to add up
        raise InputError(f"{source.path}: {error}") from error


def _joined(ranks: Ranks, parts: list[np.ndarray], width: int) -> np.ndarray:
    own = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
    return np.concatenate([part for part in ranks.gather(own) if len(part)])


def _features(
    source: Input,
    extractor: Callable[[Any], np.ndarray] | None,
    ranks: Ranks,
    batch: int,
    probabilities: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """This process's share, in order: (features, class probabilities or None)."""
    if not isinstance(source, Folder):
        assert not isinstance(source, Statistics)
        if ranks.rank == 0:
            yield source.array, None
        return
    assert extractor is not None
    # Whole batches, the same for any number of processes: so are the bits of the moments.
    first, last = ranks.share(-(-len(source.files) // batch))
    files = source.files[first * batch : last * batch]
    with _progress(str(source.path), len(files), ranks) as advance:
        for images in image_batches(files, batch):
            try:
                if probabilities:
                    yield extractor.with_probabilities(images)  # type: ignore[attr-defined]
                else:
                    yield extractor(images), None
            except (ValueError, TypeError) as error:
                raise InputError(str(error)) from error
            advance(len(images))


@contextmanager
def _progress(text: str, total: int, ranks: Ranks) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on rank 0, where stderr is a terminal."""
    if ranks.rank or not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
    except ImportError:
        yield lambda n: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n: bar.advance(task, n)


def _score(wanted: set[str], sides: Mapping[str, Side], report: Report) -> None:
    """Fills in scores and notes."""
    a, b = sides["A"], sides.get("B")
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {"is": ("inception_score", (a.probabilities,))}
    if b is not None:
        if len(a.mu) != len(b.mu):
            raise InputError(
                f"{a.source.path} has {len(a.mu)} features and {b.source.path} {len(b.mu)}: they "
                "are of different networks"
            )
        calls["fid"] = "frechet_distance", (a.mu, a.sigma, b.mu, b.sigma)
        calls["kid"] = "kernel_distance", (b.features, a.features)
        calls["prdc"] = "prdc", (b.features, a.features)
    for name in METRICS:
        if name in wanted:
            function, arguments = calls[name]
            try:
                value = getattr(metrics, function)(*arguments)
            except ValueError as error:
                raise InputError(f"{name}: {error}") from error
            report.scores.update(_entries(name, value))
    for side in sides.values():
        if "fid" in wanted and side.count is not None and side.count <= len(side.mu):
            report.notes.append(
                f"{side.source.path}: {side.count} samples of {len(side.mu)} features: the "
                "covariance is singular and the FID far from that of many samples"
            )


def _entries(name: str, value: Any) -> dict[str, float]:
    """A number under its metric's name, with a deviation if there is one; several under theirs."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): float(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return {name: float(value[0]), f"{name}_std": float(value[1])}
    return {name: float(value)}


def save_statistics(moments: Any, path: Path) -> None:
    try:
        moments.save(path)  # whole or not at all
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def show(report: Report, as_json: bool) -> None:
    """Scores on stdout; notes on stderr, or in the JSON object."""
    if as_json:
        content = {**report.scores, **report.sides, "features": report.features}
        print(json.dumps({**content, "notes": report.notes}))
        return
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    width = max((len(name) for name in report.scores), default=0)
    for name, value in report.scores.items():
        print(f"{name:{width}}  {value:.6g}")
