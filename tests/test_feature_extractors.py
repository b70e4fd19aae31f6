"""Feature extractors: the FID Inception against its peers, the small ones, users' own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from pixleap.metrics import features  # noqa: E402
from pixleap.metrics.features.extractors import INCEPTION_FILES  # noqa: E402
from pixleap.metrics.features.inception_model import FIDInceptionV3  # noqa: E402
from pixleap.metrics.features.resize import pil_bicubic, tf1_bilinear  # noqa: E402

# Features 0, 7, 55 and the mean of all, of the first of `pictures`, by torch-fidelity 0.4.0 (tf1),
# pytorch-fid 0.3.0 and torchmetrics 1.9.0 (antialias) with the weights of `inception_file`.
PEERS = {
    (64, "tf1"): (0.461567, 0.158166, 0.0780938, 0.414412),
    (192, "tf1"): (0.517015, 0.0170289, 0.00708876, 0.484323),
    (768, "tf1"): (1.32294, 0.0556526, 0.0, 0.287343),
    (2048, "tf1"): (0.474552, 0.0, 0.165448, 0.281942),
    (2048, "pytorch_fid"): (0.47654, 0.0, 0.163347, 0.282649),
    (2048, "antialias"): (0.474743, 0.0, 0.164646, 0.281382),
}
# torch-fidelity's softmax of "logits_unbiased".
PEER_PROBABILITIES = (9.17555631e-4, 8.62053712e-4, 1.27524812e-3, 6.46333318e-4)


def random_state() -> dict[str, torch.Tensor]:
    """Weights that keep the scale of the signal, under the published file's names."""
    rng = np.random.default_rng(0)
    state = {}
    for name, value in FIDInceptionV3().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        x = rng.standard_normal(value.shape, dtype=np.float32)
        if name.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif name.endswith("bn.weight"):
            x = 1 + 0.1 * x
        elif value.ndim == 1:
            x *= 0.1
        else:
            x *= np.float32((2 / x[0].size) ** 0.5)
        state[name] = torch.from_numpy(x)
    return state


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILES[0]
    torch.save(random_state(), path)
    yield path
    path.unlink()  # 95 MB


def pictures(n: int = 2, height: int = 8, width: int = 10, block: int = 40) -> np.ndarray:
    """Random blocks, so that a grid shifted by half a pixel shows."""
    blocks = np.random.default_rng(1).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    return np.kron(blocks, np.ones((block, block), np.uint8))


def as_pil(images: np.ndarray) -> list:
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in images]


# ---- Inception


@pytest.mark.parametrize(("dims", "resize"), PEERS)
def test_inception_gives_what_its_peers_give(dims: int, resize: str, inception_file: Path) -> None:
    extractor = features.inception(inception_file, dims=dims, resize=resize)
    out = extractor(pictures())
    assert out.shape == (2, dims) and out.dtype == np.float32 and extractor.dim == dims
    np.testing.assert_allclose(
        [*out[0, [0, 7, 55]], out[0].mean()], PEERS[dims, resize], rtol=1e-4, atol=1e-6
    )


def test_inception_equals_torch_fidelity(inception_file: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("x", ["2048"], str(inception_file))
    images = pictures(height=2, width=3)
    [expected] = network(torch.from_numpy(images))
    np.testing.assert_array_equal(features.inception(inception_file)(images), expected)


def test_inception_probabilities_leave_the_bias_out(inception_file: Path) -> None:
    extractor = features.inception(inception_file)
    out, probabilities = extractor.with_probabilities(pictures())
    assert probabilities.shape == (2, 1008) and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(probabilities[0, :4], PEER_PROBABILITIES, rtol=1e-4)
    np.testing.assert_array_equal(out, extractor(pictures()))
    with pytest.raises(ValueError, match="2048"):
        features.inception(inception_file, dims=64).with_probabilities(pictures(1, 2, 2, 8))


def test_inception_takes_pil_images_of_any_size_and_mode(inception_file: Path) -> None:
    extractor = features.inception(inception_file, dims=64)
    small, large = pictures(2, 2, 3, 16), pictures(1, 5, 4, 16)
    mixed = [*as_pil(small), *as_pil(large), as_pil(small)[0]]
    expected = [*extractor(small), *extractor(large), extractor(small)[0]]
    np.testing.assert_allclose(extractor(mixed), expected, rtol=1e-5, atol=1e-6)
    grey = Image.fromarray(small[0, 0])
    tripled = np.broadcast_to(small[:1, :1], (1, 3, *small.shape[2:]))
    np.testing.assert_array_equal(extractor([grey]), extractor(tripled))
    assert extractor([]).shape == (0, 64)
    np.testing.assert_array_equal(extractor(torch.from_numpy(small)), extractor(small))


def test_weight_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state()
    state["Mixed_5b.branch1x1.convolution.weight"] = state.pop("Mixed_5b.branch1x1.conv.weight")
    state["fc.bias"] = state["fc.bias"][:1000]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        features.inception(tmp_path / "other.pth")
    (tmp_path / "other.pth").unlink()
    assert "missing: Mixed_5b.branch1x1.conv.weight" in str(error.value)
    assert "unexpected: Mixed_5b.branch1x1.convolution.weight" in str(error.value)
    assert "fc.bias: expected (1008,), got (1000,)" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        features.inception(tmp_path / "absent.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights given.*torch-fidelity"):
        features.inception()
    with pytest.raises(ValueError, match="'dims' expected one of"):
        features.inception(tmp_path, dims=100)
    with pytest.raises(ValueError, match="'resize' expected one of"):
        features.inception(tmp_path, resize="nearest")


def test_weights_in_the_cache_of_torch_are_found(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "weights-inception-2015-12-05-6726825d.pth").symlink_to(inception_file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert features.inception(dims=64).name == "inception-64-tf1"


# ---- resizing


@pytest.mark.parametrize("size", [(4, 6), (11, 7), (299, 1), (640, 333)])
def test_tf1_grid(size: tuple[int, int]) -> None:
    """Against the definition: source = i * in / out, the last pixel repeated."""
    x = np.random.default_rng(2).uniform(0, 255, (1, 2, *size))

    def along(x: np.ndarray, axis: int) -> np.ndarray:
        length = x.shape[axis]
        source = np.arange(299) * np.float64(np.float32(length / 299))
        low = source.astype(int)
        weight = np.expand_dims(source - low, tuple(range(1, x.ndim - axis)))
        high = np.minimum(low + 1, length - 1)
        return x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight

    expected = along(along(x, 3), 2)
    np.testing.assert_allclose(tf1_bilinear(torch.from_numpy(x), 299), expected, rtol=1e-12)


def test_pil_bicubic_stays_in_range_and_is_not_rounded() -> None:
    edge = np.zeros((1, 3, 16, 16), np.uint8)
    edge[..., 8:] = 255
    out = pil_bicubic(edge, 40)
    assert out.shape == (1, 3, 40, 40) and out.dtype == np.float32
    assert out.min() == 0 and out.max() == 255 and (out % 1 != 0).any()
    np.testing.assert_array_equal(out[0, 0], out[0, 2])


# ---- the small ones


def test_digits_are_told_apart() -> None:
    with np.load(Path(__file__).parent / "data" / "digits_held_out.npz") as file:
        images, labels = file["images"], file["labels"]
    images = np.broadcast_to(images[:, None], (len(images), 3, *images.shape[1:]))
    out, probabilities = features.digits().with_probabilities(images)
    assert out.shape == (len(images), 32)
    assert (probabilities.argmax(axis=1) == labels).mean() >= 0.95


def test_efficientnet_lite0_knows_a_uniform() -> None:
    """Matplotlib ships a portrait in uniform; ImageNet's class 652 is "military uniform"."""
    pytest.importorskip("efficientnet_lite_pytorch")
    cbook = pytest.importorskip("matplotlib.cbook")
    portrait = Image.open(cbook.get_sample_data("grace_hopper.jpg"))
    out, probabilities = features.efficientnet_lite0().with_probabilities([portrait])
    assert out.shape == (1, 1280) and probabilities.argmax() == 652
    assert probabilities[0, 652] > 0.4  # 0.47; other means and ranges of the input lower it


def test_efficientnet_lite0_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pixleap\[efficientnet\]"):
        features.efficientnet_lite0()


# ---- users' own


def test_resolve_takes_functions_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_features.py").write_text(
        "import numpy as np\n"
        "def means(images):\n    return images.mean(axis=(2, 3))\n"
        "def flat(images):\n    return images.mean(axis=(1, 2, 3))\n"
        "def nan(images):\n    return images.mean(axis=(2, 3)) * np.nan\n"
        "class Scaled:\n"
        "    def __call__(self, images):\n        return 2 * means(images)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    images = pictures(3, 2, 2, 4)
    means = features.resolve("my_features:means")
    np.testing.assert_allclose(means(images), images.mean(axis=(2, 3)), rtol=1e-6)
    sizes = [*as_pil(images), *as_pil(pictures(2, 3, 3, 4)), *as_pil(images)]
    assert means(sizes).shape == (8, 3) and means(sizes).dtype == np.float32
    np.testing.assert_allclose(means(sizes)[5:], means(images))
    scaled = features.resolve("my_features:Scaled")
    np.testing.assert_allclose(scaled(images), 2 * means(images))
    with pytest.raises(ValueError, match=r"my_features:flat: .*shape \(3, d\), got \(3,\)"):
        features.resolve("my_features:flat")(images)
    with pytest.raises(ValueError, match="NaN"):
        features.resolve("my_features:nan")(images)
    with pytest.raises(ValueError, match="no function 'other'"):
        features.resolve("my_features:other")


def test_resolve_refuses() -> None:
    with pytest.raises(ValueError, match="expected inception, digits"):
        features.resolve("resnet")
    with pytest.raises(ImportError, match="no_such_module"):
        features.resolve("no_such_module:f")
    with pytest.raises(ValueError, match="'resize' belongs to inception"):
        features.resolve("digits", resize="tf1")


def test_bad_images() -> None:
    extractor = features.digits()
    with pytest.raises(TypeError, match=r"'images' expected dtype uint8.*got float32"):
        extractor(np.zeros((1, 3, 8, 8), np.float32))
    for shape in ((3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\)"):
            extractor(np.zeros(shape, np.uint8))
    with pytest.raises(TypeError, match=r"'images\[1\]' expected a PIL image, got ndarray"):
        extractor([as_pil(pictures(1, 1, 1, 8))[0], np.zeros((8, 8, 3), np.uint8)])
