// Row sums of a kernel matrix that is never stored:
//   out[i] = sum_j k(x_i, y_j), over j != i where y is x itself
//   polynomial: k(a, b) = (gamma a.b + coef0)^degree; gaussian: k(a, b) = exp(-gamma |a - b|^2)
#pragma once

#include <string_view>

#include "core/dispatch.h"
#include "core/pairwise.h"

namespace pixleap {

enum class PairKernel { polynomial, gaussian };

struct PairwiseKernelSumParams {
  PairwiseSets sets;
  PairKernel kernel;
  double gamma, coef0;
  int64_t degree;
  double* out;  // (N,) contiguous
};

void pairwise_kernel_sum(const Out& out, std::span<const Out> workspace, const View& x,
                         const Optional& y, std::string_view kernel, double gamma, double coef0,
                         int64_t degree);

PIXLEAP_DECLARE_KERNELS(pairwise_kernel_sum, PairwiseKernelSumParams)

}  // namespace pixleap
