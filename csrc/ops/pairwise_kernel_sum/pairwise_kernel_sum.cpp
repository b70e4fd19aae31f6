#include "ops/pairwise_kernel_sum/pairwise_kernel_sum.h"

#include <algorithm>
#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<PairwiseKernelSumParams> kernels = PIXLEAP_KERNELS_CUDA(pairwise_kernel_sum);

}  // namespace

void pairwise_kernel_sum(const Out& out, std::span<const Out> workspace, const View& x,
                         const Optional& y, std::string_view kernel, double gamma, double coef0,
                         int64_t degree) {
  const Check check("pairwise_kernel_sum");
  check.ndim(x, 2);
  PairwiseKernelSumParams p{};
  std::vector<float> scratch;
  p.sets = pairwise_sets(check, x, y, scratch, workspace, x.size(0));
  check.value(kernel == "polynomial" || kernel == "gaussian", "kernel", "polynomial or gaussian",
              std::string(kernel));
  check.value(std::isfinite(gamma) && gamma >= 0, "gamma", "a finite number >= 0", gamma);
  check.value(std::isfinite(coef0), "coef0", "a finite number", coef0);
  check.value(degree >= 1 && degree <= 16, "degree", "1 to 16", degree);
  check.dtype(out, {DType::f64});
  check.same_device(out, x);
  check.shape(out, {x.size(0)});
  check.contiguous(out);
  check.output(out);
  check.no_overlap(out, x, false);
  check.no_overlap(out, y, false);
  p.kernel = kernel == "gaussian" ? PairKernel::gaussian : PairKernel::polynomial;
  p.gamma = gamma;
  p.coef0 = coef0;
  p.degree = degree;
  p.out = out.as<double>();
  if (out.numel() > 0) kernels.run(check, p, x);
}

}  // namespace pixleap
