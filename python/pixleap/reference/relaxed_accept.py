from __future__ import annotations

import numpy as np

from .speculative_accept import check_rows, verify


def relaxed_accept(
    target: np.ndarray,
    draft: np.ndarray,
    tokens: np.ndarray,
    *,
    rule: str,
    mode: str = "token",
    epsilon: float = 0.09,
    delta: float = 0.3,
    neighbours: np.ndarray | None = None,
    tolerance: float = 0.1,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Approximate verification of drafted tokens; see `pixleap.ops.relaxed_accept`."""
    p = check_rows("relaxed_accept", "target", np.asarray(target, np.float64))
    q = check_rows("relaxed_accept", "draft", np.asarray(draft, np.float64))

    def typical(p: np.ndarray, q: np.ndarray, token: int, u: float) -> bool:
        likely = p[p > 0]
        entropy = -(likely * np.log(likely)).sum()
        return bool(p[token] > min(epsilon, delta * np.exp(-entropy)))

    def neighbourhood(p: np.ndarray, q: np.ndarray, token: int, u: float) -> bool:
        assert neighbours is not None
        near = neighbours[token]
        sums = np.cumsum(p[near[near != token]])
        raised = p[token] + sums[sums <= delta].max(initial=0.0)
        return bool(q[token] > 0 and u * q[token] < raised)

    def within_tolerance(p: np.ndarray, q: np.ndarray, token: int, u: float) -> bool:
        return bool(q[token] > 0 and (u - tolerance) * q[token] < p[token])

    decide = {
        "typical": typical,
        "neighbourhood": neighbourhood,
        "tolerance": within_tolerance,
    }[rule]
    return verify(p, q, tokens, decide, mode == "chain", seed, offset, first_sample)
