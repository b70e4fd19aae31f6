#include "ops/systematic_resample/systematic_resample.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/parallel.h"
#include "core/scratch.h"

namespace pixleap {
namespace {

// False if the row has a NaN or +inf, or nothing above -inf.
template <class T>
bool resample_row(const T* x, int64_t count, double u, double* sums, int64_t* out) {
  double top = -INFINITY;
  bool nan = false;
  for (int64_t i = 0; i < count; ++i) {
    const auto v = static_cast<double>(x[i]);
    nan = nan || v != v;
    top = v > top ? v : top;
  }
  if (nan || std::isinf(top)) return false;
  double total = 0;
  int64_t last = 0;  // with a weight above 0
  for (int64_t i = 0; i < count; ++i) {
    const double before = total;
    sums[i] = total += std::exp(static_cast<double>(x[i]) - top);
    if (total > before) last = i;
  }
  const auto n = static_cast<double>(count);
  int64_t i = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double position = (u + static_cast<double>(k)) * total;
    while (i < last && sums[i] * n <= position) ++i;
    out[k] = i;
  }
  return true;
}

void systematic_resample_cpu(const SystematicResampleParams& p) {
  std::atomic<int64_t> bad{p.rows};
  parallel_for(p.rows, (1 << 12) / p.count + 1, [&](int64_t first, int64_t last) {
    const auto sums = scratch<double>(p.count);
    for (int64_t row = first; row < last; ++row) {
      const double u =
          systematic_resample_uniform(p.seed, p.offset, p.first_row + static_cast<uint64_t>(row));
      const int64_t at = row * p.count;
      const bool ok = p.dtype == DType::f32
                          ? resample_row(static_cast<const float*>(p.log_weights) + at, p.count, u,
                                         sums.get(), p.out + at)
                          : resample_row(static_cast<const double*>(p.log_weights) + at, p.count, u,
                                         sums.get(), p.out + at);
      if (ok) continue;
      int64_t seen = bad.load();
      while (row < seen && !bad.compare_exchange_weak(seen, row)) {
      }
    }
  });
  if (bad < p.rows) *p.bad_row = bad;
}

constexpr KernelTable<SystematicResampleParams> kernels = {
    {systematic_resample_cpu, nullptr, nullptr, nullptr}, PIXLEAP_CUDA_KERNEL(systematic_resample)};

}  // namespace

void systematic_resample(const Out& out, const View& log_weights, int64_t seed, int64_t offset,
                         int64_t first_row) {
  const Check check("systematic_resample");
  const View& x = log_weights;
  check.dtype(x, {DType::f32, DType::f64});
  check.value(x.ndim >= 1, "log_weights", "at least 1 dimension", "a scalar");
  check.contiguous(x);
  check.dtype(out, {DType::i64});
  check.same_device(out, x);
  check.same_shape(out, x);
  check.contiguous(out);
  check.output(out);
  check.no_overlap(out, x, false);
  check.value(first_row >= 0, "first_row", "a number >= 0", first_row);
  if (x.numel() == 0) return;
  int64_t bad_row = -1;
  const SystematicResampleParams p{x.dtype,
                                   x.data,
                                   out.as<int64_t>(),
                                   x.numel() / x.size(-1),
                                   x.size(-1),
                                   static_cast<uint64_t>(seed),
                                   static_cast<uint64_t>(offset),
                                   static_cast<uint64_t>(first_row),
                                   &bad_row};
  kernels.run(check, p, x);
  check.value(bad_row < 0, "log_weights", "rows without NaN and +inf that have a weight above -inf",
              "row " + std::to_string(bad_row) + " (counted over the leading axes)");
}

}  // namespace pixleap
