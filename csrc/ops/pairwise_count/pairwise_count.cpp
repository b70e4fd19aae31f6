#include "ops/pairwise_count/pairwise_count.h"

#include <algorithm>

namespace pixleap {
namespace {

constexpr KernelTable<PairwiseCountParams> kernels = PIXLEAP_KERNELS_CUDA(pairwise_count);

}  // namespace

void pairwise_count(const Out& x_counts, const Out& y_counts, std::span<const Out> workspace,
                    const View& x, const View& y, const View& x_radii, const View& y_radii) {
  const Check check("pairwise_count");
  PairwiseCountParams p{};
  std::vector<float> scratch;
  p.sets = pairwise_sets(check, x, y, scratch, workspace, 0);
  const auto check_radii = [&](const View& radii, const View& points) {
    check.dtype(radii, {DType::f64});
    check.same_device(radii, x);
    check.shape(radii, {points.size(0)});
    check.contiguous(radii);
  };
  check_radii(x_radii, x);
  check_radii(y_radii, y);
  const auto check_out = [&](const View& out, const View& points) {
    check.dtype(out, {DType::i64});
    check.same_device(out, x);
    check.shape(out, {points.size(0), 2});
    check.contiguous(out);
    check.output(out);
    for (const View* in : {&x, &y, &x_radii, &y_radii}) check.no_overlap(out, *in, false);
  };
  check_out(x_counts, x);
  check_out(y_counts, y);
  check.no_overlap(x_counts, y_counts, false);
  if (x_counts.numel() + y_counts.numel() == 0) return;
  std::vector<float> radii(static_cast<size_t>(x.size(0) + y.size(0)));
  p.x_scaled = radii.data();
  p.y_scaled = radii.data() + x.size(0);
  p.x_radii = x_radii.as<double>();
  p.y_radii = y_radii.as<double>();
  p.x_counts = x_counts.as<int64_t>();
  p.y_counts = y_counts.as<int64_t>();
  kernels.run(check, p, x);
}

}  // namespace pixleap
