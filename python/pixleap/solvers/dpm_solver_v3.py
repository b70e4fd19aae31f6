"""DPM-Solver-v3: an exponential integrator whose coefficients differ by element."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from .empirical_statistics import EmpiricalStatistics, Integrals
from .grids import points
from .method import conversion
from .schedule import PREDICTION_TYPES, NoiseSchedule, Point, choose


class DPMSolverV3:
    """Multistep DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268, algorithms 1 and 2; repository
    thu-ml/DPM-Solver-v3).

    Every step is one `px.ops.lincomb` with elementwise weights.

        statistics = px.solvers.EmpiricalStatistics.load("ems.npz")
        solver = px.solvers.DPMSolverV3(statistics, schedule, "lu", steps=8)
        x = solver.start(noise)
        for t in solver.timesteps:
            x = solver.step(model(x, t))

    Args:
        statistics: of the model; must cover the grid, whose last level is therefore above 0.
        schedule, sigmas, timesteps, steps, grid: as `solver_plan`, with final "sigma_min".
        order: 1 to 3.
        pseudo: derivatives for order 3 by divided differences of divided differences, which the
            paper prefers at few steps; else those of the polynomial through the nodes.
        corrector: correct each sample with the model's answer to it, at no evaluation; of the
            order of the step that made it, with `pseudo` one more, up to 3.
        prediction_type: of the model.
        lower_order_final: lower orders over the last steps.

    The integrals are Gauss-Legendre's of the statistics' linear interpolation, where the official
    code adds trapezoids and moves levels to the statistics' grid.
    """

    def __init__(
        self,
        statistics: EmpiricalStatistics,
        schedule: NoiseSchedule,
        sigmas: Any = None,
        *,
        timesteps: Any = None,
        steps: int | None = None,
        grid: dict[str, float] | None = None,
        order: int = 3,
        pseudo: bool = False,
        corrector: bool = False,
        prediction_type: str = "epsilon",
        lower_order_final: bool = True,
    ) -> None:
        choose(prediction_type, PREDICTION_TYPES, "DPMSolverV3", "prediction_type")
        if order not in (1, 2, 3):
            raise ValueError(f"DPMSolverV3: argument 'order' expected 1, 2 or 3, got {order}")
        self.points = points(
            schedule, sigmas, timesteps=timesteps, steps=steps, final="sigma_min", **(grid or {})
        )
        if self.points[-1].sigma == 0 or self.points[0].alpha == 0:
            raise ValueError("DPMSolverV3: levels expected above 0 and with some signal")
        self.statistics, self.schedule, self.order = statistics, schedule, order
        self.pseudo, self.corrector, self.prediction_type = pseudo, corrector, prediction_type
        count = len(self.points) - 1
        self.orders = [
            min(order, i + 1, count - i if lower_order_final else order) for i in range(count)
        ]
        lambdas = [p.lam for p in self.points]
        self._integrals = statistics.integrals(lambdas, 3)
        self._l = [statistics.at(statistics.l, lam) for lam in lambdas]
        self.index = 0
        self._x: Array = None
        self._f: deque[Array] = deque(maxlen=order + 1)  # N / alpha of the latest points, first
        self._previous: Array = None
        self._spare: list[Array] = []
        self._ring: list[Array] = []
        self._weights: dict[Any, Any] = {}  # elementwise weights of steps done before

    @property
    def timesteps(self) -> list[float]:
        """What the model is told at each step."""
        return [p.time for p in self.points[:-1]]

    def start(self, x: Array) -> Array:
        """Begins a run at noise of the first level; returns the first model input."""
        size = shape(x, "DPMSolverV3", "x")
        try:
            np.broadcast_shapes(size[1:], self.statistics.shape)
        except ValueError:
            raise ValueError(
                f"DPMSolverV3: argument 'x' expected samples of shape {self.statistics.shape}, "
                f"got {size[1:]}"
            ) from None
        self._x, self.index = x, 0
        self._f.clear()
        self._spare = [empty(x, size) for _ in range(3)]
        self._ring = [empty(x, size) for _ in range(self.order + 2)]
        like = (size, x.dtype, getattr(x, "device", None))
        if self._weights.get("like") != like:
            self._weights = {"like": like}
        return x

    def step(self, output: Array) -> Array:
        """The model's answer in, the next model input out; the last is the result."""
        k = self.index
        if self._x is None or k >= len(self.points) - 1:
            raise ValueError("DPMSolverV3.step: call start(x) first, then once per time")
        now = self.points[k]
        a, b = conversion(self.schedule, self.prediction_type, "noise", now)
        f = self._ring[k % len(self._ring)]

        def prediction() -> tuple[list[Any], Any]:
            # N / alpha = (sigma noise - l x) / alpha, with noise = a x + b output
            return [now.ratio * a - self._l[k] / now.alpha, now.ratio * b], None

        self._combine(("f", k), [self._x, output], prediction, f)
        self._f.appendleft(f)
        if self.corrector and k and self.orders[k - 1] + self.pseudo > 1:
            self._x = self._correct(k, self.orders[k - 1] + self.pseudo)
        nodes = list(range(k, k - self.orders[k], -1))
        x = self._update(k, self._x, nodes, self.pseudo, self._target())
        self._previous, self._x = self._x, x
        self.index += 1
        return x

    def _target(self) -> Array:
        """A buffer that neither the current nor the previous sample is in."""
        used = {id(self._x), id(self._previous)}
        return next(s for s in self._spare if id(s) not in used)

    def _correct(self, k: int, order: int) -> Array:
        """The sample at point k again, from point k - 1 with the new prediction as a node; N keeps,
        so that the prediction at the corrected sample needs no evaluation."""
        order = min(order, 3, len(self._f))
        nodes = [k - 1, k, *range(k - 2, k - order, -1)][:order]
        return self._update(k - 1, self._previous, nodes, self.pseudo, self._target())

    def _update(self, k: int, x: Array, nodes: list[int], pseudo: bool, out: Array) -> Array:
        """From point k to k + 1 with f of the points `nodes`, k first; the newest f is in front."""

        def weights() -> tuple[list[Any], Any]:
            start, end, step = self.points[k], self.points[k + 1], self._integrals[k]
            falling = end.alpha * np.exp(-step.L)
            result, constant = [falling / start.alpha], -falling * step.C
            shares = _polynomial([self.points[j] for j in nodes], step, pseudo)
            for j, w in zip(nodes, shares, strict=True):
                S, B = self._to(k, j)
                result.append(-falling * w * np.exp(-S))
                constant = constant + falling * w * B
            return result, constant

        inputs = [x, *(self._f[self.index - j] for j in nodes)]
        self._combine((k, *nodes), inputs, weights, out)
        return out

    def _to(self, k: int, j: int) -> tuple[Any, Any]:
        """S and B of point j counted from point k: sums over the steps between."""
        if j == k:
            return 0.0, 0.0
        if j > k:
            return self._integrals[k].S, self._integrals[k].B
        S: Any = 0.0
        B: Any = 0.0
        for i in range(k - 1, j - 1, -1):
            S = S - self._integrals[i].S
            # exp(-S) from the start of step i on: B of that step, seen from k
            B = B - np.exp(-S) * self._integrals[i].B
        return S, B

    def _combine(
        self, key: Any, inputs: list[Array], weights: Callable[[], Any], out: Array
    ) -> None:
        """sum of weight * input + a constant array; `weights` is asked once for every key."""
        x = inputs[0]
        if key not in self._weights:
            elementwise, constant = weights()
            numbers = tuple(float(w) if np.ndim(w) == 0 else 1.0 for w in elementwise)
            arrays = [None if np.ndim(w) == 0 else self._array(w, x) for w in elementwise]
            if constant is not None and np.any(constant):
                numbers, arrays = (*numbers, 1.0), [*arrays, None]
                constant = [self._array(constant, x, whole=True)]
            else:
                constant = []
            self._weights[key] = numbers, arrays, constant
        numbers, arrays, constant = self._weights[key]
        ops.lincomb([*inputs, *constant], numbers, weights=arrays, out=[out])

    @staticmethod
    def _array(w: np.ndarray, like: Array, whole: bool = False) -> Array:
        """Statistics as an array of the caller's, of one sample's shape or, expanded, of all."""
        size = tuple(like.shape)
        dtype = np.float64 if str(like.dtype).endswith("float64") else np.float32
        w = np.ascontiguousarray(np.broadcast_to(w, size[1:]).astype(dtype))
        if not is_torch(like):
            return np.ascontiguousarray(np.broadcast_to(w, size)) if whole else w
        import torch

        there = torch.from_numpy(w).to(like.device)
        return there.expand(size).contiguous() if whole else there

    def sample(self, model: Callable[[Array, float], Array], x: Array) -> Array:
        """Runs the whole grid."""
        x = self.start(x)
        for t in self.timesteps:
            x = self.step(model(x, t))
        return x


def _polynomial(nodes: list[Point], step: Integrals, pseudo: bool) -> list[np.ndarray]:
    """Weights of g at the nodes: integral of exp(L + S) times the Taylor polynomial of g at the
    first node, its derivatives from differences."""
    d = np.array([p.lam - nodes[0].lam for p in nodes])
    n = len(nodes)
    if n == 1:
        return [step.moments[0]]
    if n == 2 or not pseudo:
        # Row m: what each node's value gives to the coefficient of (lambda - lambda_s)^m.
        rows = np.linalg.inv(np.vander(d, n, increasing=True))
    else:
        first = np.array([1, -1, 0]) / (d[0] - d[1])
        second = np.array([0, 1, -1]) / (d[1] - d[2])
        rows = np.array([[1, 0, 0], first, (first - second) / (d[0] - d[2])])
    return [sum(rows[m][j] * step.moments[m] for m in range(n)) for j in range(n)]
