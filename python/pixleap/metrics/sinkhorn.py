from __future__ import annotations

import numpy as np

from ._features import Array, check_number, check_pair

_KEPT = 16  # entries of the Hessian kept per point


class _Problem:
    """Entropic transport between uniform weights on n and m points.

    The plan is P = exp(f_i + g_j - C_ij / reg) / (n m). The potentials, in units of reg, maximise
    the concave dual sum(f) / n + sum(g) / m - sum(P) + 1, whose gradient is what is missing from
    the marginals.
    """

    def __init__(self, cost: np.ndarray, reg: float) -> None:
        self.scaled, self.reg = cost / reg, reg
        self.n, self.m = cost.shape
        self.f, self.g = np.zeros(self.n), np.zeros(self.m)

    def update_f(self) -> None:
        """The f of the best fit to the first marginal, at this g."""
        exponent = self.g - self.scaled
        top = exponent.max(axis=1)
        self.f = -top - np.log(np.exp(exponent - top[:, None]).mean(axis=1))

    def update_g(self) -> None:
        exponent = self.f[:, None] - self.scaled
        top = exponent.max(axis=0)
        self.g = -top - np.log(np.exp(exponent - top).mean(axis=0))

    def plan(self, f: np.ndarray, g: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # a step too far: the line search sees infinity
            return np.exp(f[:, None] + g - self.scaled) / (self.n * self.m)

    def dual(self, f: np.ndarray, g: np.ndarray, plan: np.ndarray) -> float:
        return float(f.mean() + g.mean() - plan.sum() + 1.0)

    def error(self, plan: np.ndarray) -> float:
        """L1 distance of both marginals of the plan from the uniform ones."""
        rows, columns = plan.sum(axis=1), plan.sum(axis=0)
        return float(np.abs(rows - 1 / self.n).sum() + np.abs(columns - 1 / self.m).sum())

    def newton_direction(self, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Conjugate gradients on the Hessian with the small entries of the plan left out."""
        rows, columns = plan.sum(axis=1), plan.sum(axis=0)
        kept = min(plan.size, _KEPT * (self.n + self.m))
        smallest = np.partition(plan, plan.size - kept, axis=None)[plan.size - kept]
        i, j = np.nonzero(plan >= max(smallest, 1e-300))
        values = plan[i, j]
        diagonal = np.concatenate([rows, columns])

        def hessian(v: np.ndarray) -> np.ndarray:
            a = np.bincount(i, values * v[self.n + j], self.n)
            b = np.bincount(j, values * v[i], self.m)
            return diagonal * v + np.concatenate([a, b])

        # A little above the diagonal: (1, -1) is in the null space of the full Hessian.
        diagonal = diagonal * (1 + 1e-12)
        residual = np.concatenate([1 / self.n - rows, 1 / self.m - columns])
        size = float(np.linalg.norm(residual))
        target = 1e-3 * min(1.0, size) * size
        step = np.zeros_like(residual)
        z = residual / diagonal
        direction, product = z, residual @ z
        for _ in range(200):
            if np.linalg.norm(residual) <= target or product <= 0:
                break
            image = hessian(direction)
            rate = product / (direction @ image)
            step = step + rate * direction
            residual = residual - rate * image
            z = residual / diagonal
            product, previous = residual @ z, product
            direction = z + product / previous * direction
        return step[: self.n], step[self.n :]

    def newton_step(self, plan: np.ndarray) -> np.ndarray | None:
        """One step with a backtracking line search; the new plan, or None where none is better."""
        df, dg = self.newton_direction(plan)
        slope = df @ (1 / self.n - plan.sum(axis=1)) + dg @ (1 / self.m - plan.sum(axis=0))
        if not slope > 0:
            return None
        value, rate, error = self.dual(self.f, self.g, plan), 1.0, self.error(plan)
        for _ in range(12):
            f, g = self.f + rate * df, self.g + rate * dg
            new = self.plan(f, g)
            # Near the end the dual no longer tells steps apart, the marginals do.
            better = self.dual(f, g, new) >= value + 1e-4 * rate * slope
            if better or (rate == 1.0 and self.error(new) < 0.5 * error):
                self.f, self.g = f, g
                return new
            rate *= 0.5
        return None


def _transport(
    cost: np.ndarray, reg: float, warm_up: int, tolerance: float, max_iterations: int
) -> float:
    problem = _Problem(cost, reg)
    newton, sinkhorn_left = False, warm_up
    for _ in range(max_iterations):
        if not newton:
            problem.update_f()
            problem.update_g()
            plan = problem.plan(problem.f, problem.g)
            sinkhorn_left -= 1
            newton = sinkhorn_left <= 0
        else:
            step = problem.newton_step(plan)
            if step is None:  # back to a few matrix scalings
                newton, sinkhorn_left = False, warm_up
                continue
            plan = step
        if problem.error(plan) < tolerance:
            return reg * problem.dual(problem.f, problem.g, plan)
    raise ValueError(
        f"sinkhorn_divergence: argument 'max_iterations' expected enough to converge, got "
        f"{max_iterations} (marginals are off by {problem.error(plan):.2g}; a larger 'reg' or "
        "'tolerance' takes fewer)"
    )


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centre = x.mean(axis=0, dtype=np.float64)
    a, b = x - centre, y - centre
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * (a @ b.T)
    if x is y:
        np.fill_diagonal(squares, 0.0)
    return np.maximum(squares, 0.0)


def sinkhorn_divergence(
    x: Array,
    y: Array,
    reg: float,
    *,
    warm_up: int = 20,
    tolerance: float = 1e-8,
    max_iterations: int = 2000,
) -> float:
    """Debiased entropic transport cost: OT(x, y) - (OT(x, x) + OT(y, y)) / 2.

    OT is the least sum P C + reg KL(P | uniform), C the squared distance. Matrix scaling in the
    log domain warms up; Newton steps whose Hessian keeps the largest entries of the plan only
    finish, in a few steps where scaling alone takes thousands.

    Args:
        x, y: (N, d), (M, d) features, NumPy or torch. Three float64 N x M matrices are held: up
            to about 5,000 samples.
        reg: weight of the entropy, in units of the squared distance.
        warm_up: matrix scalings before the Newton steps.
        tolerance: L1 error of the marginals at which to stop; the cost is wrong by its square.
        max_iterations: scalings and Newton steps together.

    Returns:
        The divergence, >= 0 up to rounding, 0 where the sets agree.

    Raises:
        ValueError: dimensions that differ, NaN or infinity (with the first bad row), parameters
            out of range, no convergence.

    Source: Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations" (ICLR
    2024); Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences" (AISTATS 2019).
    """
    name = "sinkhorn_divergence"
    x, y = check_pair(name, x, y)
    check_number(name, "reg", reg, 0)
    check_number(name, "tolerance", tolerance, 0)
    check_number(name, "warm_up", warm_up, 1, whole=True)
    check_number(name, "max_iterations", max_iterations, 1, whole=True)
    between, within_x, within_y = (
        _transport(_squared_distances(a, b), reg, warm_up, tolerance, max_iterations)
        for a, b in ((x, y), (x, x), (y, y))
    )
    return between - 0.5 * (within_x + within_y)
