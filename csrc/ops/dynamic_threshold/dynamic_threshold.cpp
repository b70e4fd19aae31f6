#include "ops/dynamic_threshold/dynamic_threshold.h"

#include <algorithm>
#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<DynamicThresholdParams> kernels = PIXLEAP_KERNELS_CUDA(dynamic_threshold);

// Every sample is one contiguous run; samples may lie apart.
void check_samples(const Check& check, const View& v) {
  View sample = v;
  sample.shape[0] = v.numel() ? 1 : 0;
  check.contiguous(sample);
}

}  // namespace

void dynamic_threshold_select(float* values, int64_t n, int64_t k) {
  std::nth_element(values, values + k, values + n);
}

void dynamic_threshold(const Out& out, const Out& scale, const View& x, double ratio,
                       double max_value, double min_value) {
  const Check check("dynamic_threshold");
  check.dtype(x, {DType::f32, DType::bf16, DType::f16});
  check.value(x.ndim >= 1, "x", "at least 1 dimension", "a scalar");
  check_samples(check, x);
  check.same_dtype(out, x);
  check.same_device(out, x);
  check.same_shape(out, x);
  check_samples(check, out);
  check.output(out);
  check.no_overlap(out, x, true);
  check.dtype(scale, {DType::f32});
  check.same_device(scale, x);
  check.shape(scale, {x.size(0)});
  check.contiguous(scale);
  check.output(scale);
  check.no_overlap(scale, x, false);
  check.no_overlap(scale, out, false);
  check.value(ratio >= 0 && ratio <= 1, "ratio", "a number in [0, 1]", ratio);
  const auto low = static_cast<float>(min_value), high = static_cast<float>(max_value);
  check.value(low > 0 && std::isfinite(low), "min_value", "a finite float32 > 0", min_value);
  check.value(high >= low, "max_value", "at least min_value", max_value);
  if (x.size(0) == 0) return;
  int64_t length = 1;
  for (int i = 1; i < x.ndim; ++i) length *= x.shape[i];
  check.value(length > 0, "x", "samples with elements", "shape " + shape_string(x));
  const double position = ratio * static_cast<double>(length - 1);
  const auto rank = std::min(static_cast<int64_t>(position), length - 1);
  const DynamicThresholdParams p{x.dtype,     x.data,
                                 out.data,    scale.as<float>(),
                                 x.size(0),   length,
                                 x.stride(0), out.stride(0),
                                 rank,        position - static_cast<double>(rank),
                                 low,         high};
  kernels.run(check, p, x);
}

}  // namespace pixleap
