"""Diffusion and flow samplers, each written once as plain arithmetic and run as one fused pass."""

from . import methods, reference
from .grids import GRIDS, points
from .linear_form import LinearForm
from .method import ALIASES, METHODS, Step, conversion, method
from .plan import SolverPlan, solver_plan
from .schedule import PREDICTION_TYPES, NoiseSchedule, Point, dynamic_shift_mu, flow_shift
from .solver import Solver, solver_step


def solver_names() -> list[str]:
    """Every name that `solver_plan` knows."""
    return sorted({*METHODS, *ALIASES})


__all__ = [
    "ALIASES",
    "GRIDS",
    "METHODS",
    "PREDICTION_TYPES",
    "LinearForm",
    "NoiseSchedule",
    "Point",
    "Solver",
    "SolverPlan",
    "Step",
    "conversion",
    "dynamic_shift_mu",
    "flow_shift",
    "method",
    "methods",
    "points",
    "reference",
    "solver_names",
    "solver_plan",
    "solver_step",
]
