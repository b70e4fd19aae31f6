"""Diffusion and flow samplers, each written once as plain arithmetic and run as one fused pass."""

from . import methods, reference
from .adaptive import AdaptiveSolver
from .dpm_solver_v3 import DPMSolverV3
from .editing import ConsistentEditor
from .empirical_statistics import EmpiricalStatistics
from .feynman_kac import FeynmanKacSampler
from .grids import GRIDS, points
from .langevin import DenoisingMCMC, PredictorCorrector
from .linear_form import LinearForm
from .mean_reverting import MeanRevertingSchedule, ResidualDenoising
from .method import ALIASES, METHODS, Step, conversion, method
from .parallel import ParallelResult, parallel_sample
from .plan import SolverPlan, solver_plan
from .schedule import PREDICTION_TYPES, NoiseSchedule, Point, dynamic_shift_mu, flow_shift
from .search import SearchResult, search_schedule, search_timesteps
from .solver import Solver
from .starts import GaussianTeleport, one_more_step, pfgmpp_noise
from .stateless import solver_start, solver_step
from .stitching import StitchedModel
from .time_shift import TimeShiftSolver


def solver_names() -> list[str]:
    """Every name that `solver_plan` knows."""
    return sorted({*METHODS, *ALIASES})


__all__ = [
    "ALIASES",
    "GRIDS",
    "METHODS",
    "PREDICTION_TYPES",
    "AdaptiveSolver",
    "ConsistentEditor",
    "DPMSolverV3",
    "DenoisingMCMC",
    "EmpiricalStatistics",
    "FeynmanKacSampler",
    "GaussianTeleport",
    "LinearForm",
    "MeanRevertingSchedule",
    "NoiseSchedule",
    "ParallelResult",
    "Point",
    "PredictorCorrector",
    "ResidualDenoising",
    "SearchResult",
    "Solver",
    "SolverPlan",
    "Step",
    "StitchedModel",
    "TimeShiftSolver",
    "conversion",
    "dynamic_shift_mu",
    "flow_shift",
    "method",
    "methods",
    "one_more_step",
    "parallel_sample",
    "pfgmpp_noise",
    "points",
    "reference",
    "search_schedule",
    "search_timesteps",
    "solver_names",
    "solver_plan",
    "solver_start",
    "solver_step",
]
