"""The solvers: importing this package registers them."""

from . import adams, exponential, first_order, predictor_corrector, runge_kutta

__all__ = ["adams", "exponential", "first_order", "predictor_corrector", "runge_kutta"]
