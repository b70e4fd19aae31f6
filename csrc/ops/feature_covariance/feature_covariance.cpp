#include "ops/feature_covariance/feature_covariance.h"

#include <limits>

#include "core/check.h"
#include "core/parallel.h"
#include "ops/feature_covariance/double2.h"

namespace pixleap {
namespace {

void feature_covariance_cpu(const FeatureCovarianceParams& p) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const int64_t d = p.d;
  for (int64_t i = 0; i < d; ++i) {
    const Double2 m = divide(from_fixed(p.first + 2 * i), p.count);
    p.mean[i] = spoiled(p.second + i * (i + 3)) ? kNan : m.high + m.low;
  }
  parallel_for(d, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Double2 si = divide(from_fixed(p.first + 2 * i), p.count);
      const bool nan = spoiled(p.second + i * (i + 3));
      for (int64_t j = 0; j <= i; ++j) {
        const Double2 product = multiply(si, from_fixed(p.first + 2 * j));
        const Double2 total = from_fixed(p.second + i * (i + 1) + 2 * j);
        p.covariance[i * d + j] = p.covariance[j * d + i] =
            nan ? kNan : difference(total, product) / (p.count - 1);
      }
    }
  });
}

constexpr KernelTable<FeatureCovarianceParams> kernels = {
    {feature_covariance_cpu, nullptr, nullptr, nullptr}, PIXLEAP_CUDA_KERNEL(feature_covariance)};

}  // namespace

void feature_covariance(const Out& mean, const Out& covariance, const View& second,
                        const View& first, int64_t count) {
  const Check check("feature_covariance");
  check.dtype(first, {DType::i64});
  check.dtype(second, {DType::i64});
  check.ndim(first, 2);
  const int64_t d = first.size(0);
  check.value(d < (1 << 24), "first", "less than 2^24 rows", shape_string(first));
  check.shape(first, {d, 2});
  check.shape(second, {d * (d + 1) / 2, 2});
  check.contiguous(first);
  check.contiguous(second);
  check.same_device(second, first);
  check.value(count >= 2 && count < (int64_t{1} << 53), "count", "at least 2 rows", count);
  check.dtype(mean, {DType::f64});
  check.dtype(covariance, {DType::f64});
  check.shape(mean, {d});
  check.shape(covariance, {d, d});
  for (const Out* out : {&mean, &covariance}) {
    check.same_device(*out, first);
    check.contiguous(*out);
    check.output(*out);
    check.no_overlap(*out, first, false);
    check.no_overlap(*out, second, false);
  }
  check.no_overlap(mean, covariance, false);
  if (d == 0) return;
  kernels.run(check,
              {second.as<const int64_t>(), first.as<const int64_t>(), mean.as<double>(),
               covariance.as<double>(), d, static_cast<double>(count)},
              first);
}

}  // namespace pixleap
