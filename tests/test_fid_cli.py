"""`pixleap fid`: scores of folders, arrays and statistics; errors; several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

import pixleap as px  # noqa: E402
from pixleap.cli import main  # noqa: E402

DIGITS = Path(__file__).parent / "data" / "digits_held_out.npz"


def held_out() -> np.ndarray:
    with np.load(DIGITS) as file:
        return file["images"]


def write_images(folder: Path, images: np.ndarray, suffix: str = ".png") -> Path:
    """Into subfolders, so that sorting and recursion matter."""
    for i, image in enumerate(images):
        path = folder / f"class {i % 3}" / f"{i:03}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images = held_out()
    noise = np.random.default_rng(0).integers(0, 60, images.shape)
    noisy = (images.astype(int) + noise).clip(0, 255).astype(np.uint8)
    return write_images(tmp_path / "a", noisy), write_images(tmp_path / "b", images)


def features_of(folder: Path) -> np.ndarray:
    files = sorted(folder.rglob("*.png"), key=lambda f: f.relative_to(folder).as_posix())
    return px.metrics.features.digits()([Image.open(file) for file in files])


def distance(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    moments = x.mean(axis=0), np.cov(x, rowvar=False), y.mean(axis=0), np.cov(y, rowvar=False)
    return px.metrics.frechet_distance(*moments)


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    main(["fid", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main(["fid", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("pixleap fid: ") and err.count("\n") == 1
    return err


DIGIT = ("--features", "digits")


# ---- scores


def test_two_folders(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folders
    report = run(capsys, a, b, *DIGIT, "--batch", 7)
    expected = distance(features_of(a), features_of(b))
    assert expected > 0.1
    assert report["fid"] == pytest.approx(expected, rel=1e-5)
    assert report["features"] == "digits"
    assert report["A"] == {"path": str(a), "kind": "folder", "count": 40}
    assert report["notes"] == []
    other = run(capsys, a, b, *DIGIT, "--batch", 40)
    assert other["fid"] == pytest.approx(report["fid"], rel=1e-5)
    main(["fid", str(a), str(b), *DIGIT])
    name, value = capsys.readouterr().out.split()
    assert name == "fid" and float(value) == pytest.approx(expected, rel=1e-4)


def test_all_metrics(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = folders
    report = run(capsys, a, b, *DIGIT, "--metrics", "fid,kid,prdc,is")
    x, y = features_of(a), features_of(b)
    assert report["kid"] == pytest.approx(float(px.metrics.kernel_distance(y, x)), rel=1e-4)
    prdc = px.metrics.prdc(y, x)
    prdc = prdc._asdict() if hasattr(prdc, "_asdict") else prdc
    for name in ("precision", "recall", "density", "coverage"):
        assert report[name] == pytest.approx(float(prdc[name]), abs=1e-12)
    _, probabilities = px.metrics.features.digits().with_probabilities(
        [Image.open(file) for file in sorted(a.rglob("*.png"))]
    )
    score = px.metrics.inception_score(probabilities)
    score = score[0] if isinstance(score, tuple) else score
    assert report["is"] == pytest.approx(score, rel=1e-5)
    assert run(capsys, a, *DIGIT, "--metrics", "is")["is"] == pytest.approx(report["is"], rel=1e-9)


def test_precision_is_of_the_first_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A generator that repeats one mode of two has precision 1 and recall 1/2."""
    rng = np.random.default_rng(0)
    modes = np.repeat([[0.0, 0.0], [100.0, 0.0]], 30, axis=0)
    np.save(tmp_path / "real.npy", rng.standard_normal((60, 2)) + modes)
    np.save(tmp_path / "generated.npy", 0.3 * rng.standard_normal((60, 2)))
    report = run(capsys, tmp_path / "generated.npy", tmp_path / "real.npy", "--metrics", "prdc")
    assert report["precision"] == 1 and report["recall"] <= 0.5


def test_saved_statistics_and_features_give_the_same(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    expected = run(capsys, a, b, *DIGIT)["fid"]
    stats = tmp_path / "b.npz"
    main(["fid", str(b), *DIGIT, "--save-stats", str(stats)])
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "b.npz"]
    with np.load(stats) as file:
        x = features_of(b).astype(np.float64)
        np.testing.assert_allclose(file["mu"], x.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(file["sigma"], np.cov(x, rowvar=False), rtol=1e-4, atol=1e-5)
    report = run(capsys, a, stats, *DIGIT)
    assert report["fid"] == pytest.approx(expected, rel=1e-9)
    assert report["B"] == {"path": str(stats), "kind": "statistics", "count": None}

    np.save(tmp_path / "a.npy", features_of(a))
    np.savez(tmp_path / "feats.npz", feats=features_of(b), other=np.zeros(3))
    report = run(capsys, tmp_path / "a.npy", tmp_path / "feats.npz")
    assert report["fid"] == pytest.approx(expected, rel=1e-5)
    assert report["features"] is None


def test_num_takes_the_first_in_sorted_order(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    report = run(capsys, a, b, *DIGIT, "--num", 35)
    assert report["fid"] == pytest.approx(distance(features_of(a)[:35], features_of(b)[:35]), 1e-5)
    assert "41, but only 40 images" in fails(capsys, a, b, *DIGIT, "--num", 41)


def test_too_few_samples_are_noted(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    [first, second] = run(capsys, a, b, *DIGIT, "--num", 20)["notes"]
    assert first.startswith(f"{a}: 20 samples of 32 features") and second.startswith(str(b))


def test_a_users_function_and_images_of_many_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colours.py").write_text(
        "def mean(images):\n    return images.astype('float32').mean(axis=(2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(1)
    folder = tmp_path / "mixed"
    folder.mkdir()
    expected = []
    for i, suffix in enumerate((".png", ".BMP", ".tif", ".webp", ".ppm", ".png")):
        image = np.full((5 + i // 2, 7, 3), rng.integers(0, 256, 3), np.uint8)
        options = {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(image).save(folder / f"{i}{suffix}", **options)
        expected.append(image.mean(axis=(0, 1)))
    (folder / "notes.txt").write_text("not an image")
    np.save(tmp_path / "expected.npy", np.array(expected))
    report = run(capsys, folder, "expected.npy", "--features", "colours:mean", "--metrics", "fid")
    assert report["A"]["count"] == 6
    assert report["fid"] == pytest.approx(0, abs=1e-3)


# ---- errors: one line, exit code 2, nothing half written


def test_what_is_wrong_with_the_paths(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = folders
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("?")
    (tmp_path / "corrupt.npz").write_bytes(b"PK\x03\x04 not a zip file")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "other.npz", x=np.zeros(3), y=np.zeros(3))
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "nan.npy", np.full((5, 3), np.nan))
    np.save(tmp_path / "object.npy", np.array([None, 1]), allow_pickle=True)
    np.savez(tmp_path / "whole.npz", mu=np.zeros(3), sigma=np.eye(3))
    cut = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(cut[: len(cut) // 2])
    for name, message in {
        "empty": "no images",
        "absent": "no such file or folder",
        "text.txt": "expected a folder of images",
        "corrupt.npz": "does not read as .npz",
        "cut.npz": "does not read as .npz",
        "empty.npy": "does not read as .npy",
        "object.npy": "does not read as .npy",
        "half.npz": "without 'sigma'",
        "shapes.npz": "expected mu (d,) and sigma (d, d)",
        "other.npz": "expected arrays 'mu' and 'sigma', or 'features', got x, y",
        "flat.npy": "expected features of shape (n, d)",
        "nan.npy": "NaN",
        "whole.npz": "different networks",
    }.items():
        line = fails(capsys, a, tmp_path / name, *DIGIT)
        assert str(tmp_path / name) in line and message in line


def test_an_unreadable_image_is_named_and_nothing_is_written(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    victim = sorted(a.rglob("*.png"))[17]
    data = victim.read_bytes()
    stats = tmp_path / "kept.npz"
    stats.write_bytes(b"as it was")
    for content in (b"", b"not a picture", data[: len(data) // 2]):
        victim.write_bytes(content)
        line = fails(capsys, a, b, *DIGIT, "--save-stats", stats)
        assert str(victim) in line and "not a readable image" in line
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(victim)
    assert "8 bits" in fails(capsys, a, b, *DIGIT, "--save-stats", stats)
    assert stats.read_bytes() == b"as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "kept.npz"]


def test_a_failing_write_leaves_no_part(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Path.write_bytes

    def full_disk(self: Path, data: Any) -> int:
        write(self, bytes(data)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    line = fails(capsys, folders[0], *DIGIT, "--save-stats", tmp_path / "s.npz")
    assert "No space left on device" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_what_is_wrong_with_the_options(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    np.savez(tmp_path / "s.npz", mu=np.zeros(32), sigma=np.eye(32))
    stats = tmp_path / "s.npz"
    for arguments, message in (
        ([a, b, "--features", "resnet"], "expected inception"),
        ([a, b, "--features", "no_such_module:f"], "no_such_module"),
        ([a, b, "--weights", tmp_path / "w.pth"], "w.pth: no such file"),
        ([a, b, *DIGIT, "--resize", "tf1"], "belongs to inception"),
        ([a, b, *DIGIT, "--metrics", "fid,lpips"], "got 'lpips'"),
        ([a, stats, *DIGIT, "--metrics", "kid"], "kid needs features"),
        ([stats, stats, "--metrics", "is"], "is needs images"),
        ([a, b, *DIGIT, "--batch", "0"], "--batch"),
        ([a], "expected a second set"),
        ([a, "--metrics", "kid"], "kid: needs a second set"),
        ([stats, "--save-stats", tmp_path / "t.npz"], "statistics already"),
        ([a, *DIGIT, "--save-stats", tmp_path / "t.txt"], "ending in .npz"),
        ([a, *DIGIT, "--save-stats", tmp_path / "no" / "t.npz"], "no such folder"),
    ):
        assert message in fails(capsys, *arguments)


# ---- several processes


def launch(*arguments: Any) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of two processes started as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from pixleap.cli import main; main()"
    common = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(px.__file__).resolve().parents[1]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "fid", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    results = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        results.append((process.returncode, out, err))
    return results


def test_two_processes_give_what_one_gives(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = folders
    options = (a, b, *DIGIT, "--metrics", "fid,kid,prdc,is", "--num", 39, "--batch", 4)
    expected = run(capsys, *options)
    stats = tmp_path / "s.npz"
    (first, out, err), (second, silent, _) = launch(*options, "--json", "--save-stats", stats)
    assert (first, second, silent) == (0, 0, ""), err
    report = json.loads(out)
    assert report["A"]["count"] == 39
    for name in ("fid", "kid", "precision", "recall", "density", "coverage", "is"):
        assert report[name] == pytest.approx(expected[name], rel=1e-12), name
    with np.load(stats) as file:
        x = features_of(a)[:39].astype(np.float64)
        np.testing.assert_allclose(file["mu"], x.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_an_error_in_one_process_ends_all(
    folders: tuple[Path, Path],
) -> None:
    a, b = folders
    files = sorted(a.rglob("*.png"), key=lambda f: f.relative_to(a).as_posix())
    files[-1].write_bytes(b"broken")  # the second process has it
    (first, out, err), (second, _, silent) = launch(a, b, *DIGIT)
    assert (first, second, out) == (2, 2, "")
    assert str(files[-1]) in err and "pixleap fid:" in err and "pixleap fid:" not in silent
