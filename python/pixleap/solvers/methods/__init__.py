"""The solvers: importing this package registers them."""

from . import (
    adams,
    block,
    exponential,
    first_order,
    mixed,
    momentum,
    pndm,
    predictor_corrector,
    runge_kutta,
    score_sde,
    stochastic_interpolants,
)

for _base in ("ddim", "euler", "ipndm", "dpmpp_2m", "dpm_solver_2m"):
    momentum.with_momentum(_base)
momentum.with_momentum("unipc", declared=2)

__all__ = [
    "adams",
    "block",
    "exponential",
    "first_order",
    "mixed",
    "momentum",
    "pndm",
    "predictor_corrector",
    "runge_kutta",
    "score_sde",
    "stochastic_interpolants",
]
