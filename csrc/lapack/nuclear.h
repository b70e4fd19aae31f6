// Nuclear norms (sums of singular values) and traces of square roots, each by the cheapest way
// that is accurate enough.
#pragma once

#include "core/function_ref.h"
#include "lapack/lapack.h"

namespace pixleap {

enum class TraceMethod : int { automatic = 0, cholesky = 1, pivoted = 2, eigh = 3 };

struct TraceResult {
  double value = 0;
  double error = 0;  // estimate of |value - exact|, with what rounding of the input explains
  TraceMethod method = TraceMethod::automatic;
  int64_t rank1 = 0, rank2 = 0;
  // max |c - S S^T| of the factors taken, over the largest element of c: far from rounding
  // where c is not positive semi-definite.
  double residual1 = 0, residual2 = 0;
};

// Sum of the singular values of a (m x n), which is destroyed. `error` receives an estimate.
double nuclear_norm(const Lapack& lapack, int64_t m, int64_t n, double* a, double* error);

// Writes the lower triangle of an n x n matrix, column-major; may be called more than once.
using LoadMatrix = FunctionRef<void(double*)>;

// tr (c1 c2)^(1/2) of symmetric positive semi-definite n x n matrices. TraceMethod::cholesky gives
// value NaN where c1 is not positive definite.
TraceResult trace_sqrt_product(const Lapack& lapack, int64_t n, LoadMatrix c1, LoadMatrix c2,
                               TraceMethod method);

}  // namespace pixleap
