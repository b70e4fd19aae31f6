"""The solvers: importing this package registers them."""

from . import adams, block, exponential, first_order, pndm, predictor_corrector, runge_kutta

__all__ = [
    "adams",
    "block",
    "exponential",
    "first_order",
    "pndm",
    "predictor_corrector",
    "runge_kutta",
]
