"""`pixleap sample`: pictures and arrays of digits, and errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pixleap.cli import main  # noqa: E402
from pixleap.cli.sample import parse_labels, parse_option  # noqa: E402


def sample(*arguments: object) -> None:
    main(["sample", *map(str, arguments)])


def test_array_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    few = ("--labels", "3,7", "--per-label", 2, "--steps", 4, "--guidance", 2)
    sample(*few, "--out", tmp_path / "new" / "digits.npy")
    images = np.load(tmp_path / "new" / "digits.npy")
    assert images.shape == (4, 1, 28, 28)
    assert "4 images in" in capsys.readouterr().out
    sample(*few, "--out", tmp_path / "again.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), images)
    sample(*few, "--seed", 1, "--out", tmp_path / "again.npy")
    assert not np.array_equal(np.load(tmp_path / "again.npy"), images)
    sample(*few, "--solver", "ddim", "--option", "eta=0.5", "--out", tmp_path / "digits.png")
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.size == ((2 * 29 + 1) * 4, (2 * 29 + 1) * 4)


def test_list_names_sources(capsys: pytest.CaptureFixture[str]) -> None:
    sample("--solver", "list")
    out = capsys.readouterr().out
    assert "dpmpp_2m" in out and "Lu et al. 2022" in out


def test_parsing() -> None:
    assert parse_labels("0-3,7") == [0, 1, 2, 3, 7]
    assert parse_option("eta=0.5") == ("eta", 0.5)
    assert parse_option("order=3") == ("order", 3)
    assert parse_option("corrector=False") == ("corrector", False)
    assert parse_option("solver_type=bh1") == ("solver_type", "bh1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--solver", "dpm++"), "argument 'name' expected one of ab4, .*got 'dpm"),
        (("--grid", "kerras"), "'sigmas' expected one of karras"),
        (("--steps", "0"), "'steps' expected >= 1, got 0"),
        (("--labels", "a"), "--labels expected as 3, 0-9 or 1,5,7, got 'a'"),
        (("--labels", "5-3"), "names none"),
        (("--labels", "11"), "labels y must be 0 to 10"),
        (("--option", "eta"), "--option expected as name=value, got 'eta'"),
        (("--option", "eta2=1"), "has no option 'eta2'"),
        (("--out", "digits.txt"), "--out expected a .png or .npy file"),
        (("--model", "missing.npz"), "missing.npz"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        sample("--per-label", 1, *arguments)
    assert list(tmp_path.iterdir()) == []
