"""Feature statistics of the 500 held-out digits, for FID. Run after train_classifier.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pixleap.models.classifier import load_classifier

from data import halve, load_digits

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "python/pixleap/models/weights/digits_reference.npz"


def main() -> None:
    """Write float64 mu_28, mu_14 (32,) and sigma_28, sigma_14 (32, 32)."""
    torch.set_num_threads(1)
    _, _, held, _ = load_digits()
    model = load_classifier()
    stats = {}
    for name, images in (("28", held), ("14", halve(held))):
        features = model.features(images).double().numpy()
        stats[f"mu_{name}"] = features.mean(axis=0)
        stats[f"sigma_{name}"] = np.cov(features, rowvar=False)
    np.savez(OUT, **stats)  # type: ignore[arg-type]
    for name, value in stats.items():
        print(name, value.shape, f"mean {value.mean():.4f}")


if __name__ == "__main__":
    main()
