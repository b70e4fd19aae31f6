from __future__ import annotations

import numpy as np

from ._features import Array, check_features


def vendi_score(x: Array, q: float = 1.0, *, normalize: bool = True) -> float:
    """Vendi score: the effective number of distinct samples, without a reference.

    exp of the Renyi entropy of order q of the eigenvalues of K / N, K the cosine similarities. The
    eigenvalues are those of the smaller of the N x N and the d x d Gram matrix, in float64.

    Args:
        x: (N, d) features, NumPy or torch.
        q: order, >= 0: 1 is Shannon's, infinity gives 1 / the largest eigenvalue. Small orders
            weigh rare modes more.
        normalize: scale rows to unit norm; False takes them as they are, of norm 1 each.

    Returns:
        1 (all the same) to min(N, d).

    Raises:
        ValueError: no samples, NaN or infinity, a row of norm 0 (or not 1 without normalize), a
            negative q.

    Source: Friedman and Dieng, "The Vendi Score" (TMLR 2023); orders: Pasarkar and Dieng, "Cousins
    of the Vendi Score" (AISTATS 2024).
    """
    features = check_features("vendi_score", "x", x).astype(np.float64)
    if not (isinstance(q, (int, float)) and q >= 0):
        raise ValueError(f"vendi_score: argument 'q' expected a number >= 0, got {q!r}")
    norms = np.linalg.norm(features, axis=1)
    bad = norms == 0 if normalize else np.abs(norms - 1) > 1e-3
    if bad.any():
        row = int(bad.argmax())
        wanted = "rows of norm above 0" if normalize else "rows of norm 1 without normalize"
        raise ValueError(
            f"vendi_score: argument 'x' expected {wanted}, got norm {norms[row]:g} in row {row}"
        )
    if normalize:
        features /= norms[:, None]
    n, d = features.shape
    gram = features @ features.T if n <= d else features.T @ features
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-12 * values.max()]  # the others are 0 but for rounding
    if q == 1:
        return float(np.exp(-(values * np.log(values)).sum()))
    if np.isinf(q):
        return float(1.0 / values.max())
    return float((values**q).sum() ** (1.0 / (1.0 - q)))
