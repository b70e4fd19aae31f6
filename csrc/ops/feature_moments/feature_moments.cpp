#include "ops/feature_moments/feature_moments.h"

#include "core/scratch.h"
#include "core/workspace.h"

namespace pixleap {
namespace {

constexpr KernelTable<FeatureMomentsParams> kernels = PIXLEAP_KERNELS_CUDA(feature_moments);

void check_state(const Check& check, const View& v, int64_t length) {
  check.dtype(v, {DType::i64});
  check.shape(v, {length, 2});
  check.contiguous(v);
  check.output(v);
}

}  // namespace

void feature_moments(const Out& second, const Out& first, std::span<const Out> workspace,
                     const View& features) {
  const Check check("feature_moments");
  check.dtype(features, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.ndim(features, 2);
  check.unit_last_stride(features);
  const int64_t n = features.size(0), d = features.size(1);
  check.value(d < (1 << 24), "features", "less than 2^24 columns", shape_string(features));
  check_state(check, second, d * (d + 1) / 2);
  check_state(check, first, d);
  check.same_device(second, features);
  check.same_device(first, features);
  check.no_overlap(second, first, false);
  check.no_overlap(second, features, false);
  check.no_overlap(first, features, false);
  if (n == 0 || d == 0) return;
  const int64_t blocks = parts(n, kFeatureBlock), columns = parts(d, kFeatureTile) * kFeatureTile;
  FeatureMomentsParams p{};
  p.features = features.data, p.dtype = features.dtype;
  p.n = n, p.d = d, p.row_stride = features.stride(0);
  p.second = second.as<int64_t>(), p.first = first.as<int64_t>();
  if (workspace_size(check, workspace, features, 4 * blocks * d + 1) > 0) {
    p.workspace = workspace[0].as<double>();
    return kernels.run(check, p, features);
  }
  const int64_t itemsize = features.dtype == DType::f64 ? 8 : 4;
  const auto sums = scratch<double>(blocks * columns), squares = scratch<double>(blocks * columns);
  const auto shift = scratch<float>(columns);
  const auto lever = scratch<double>(2 * columns);
  const auto packed = scratch<char>(parts(n, blocks) * columns * itemsize + 64);
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(packed.get()) + 63) / 64 * 64;
  int64_t bad_row = -1, overflow = -1;
  p.columns = columns;
  p.sums = sums.get(), p.squares = squares.get();
  p.shift = shift.get(), p.lever = lever.get();
  p.packed = reinterpret_cast<void*>(aligned);
  p.bad_row = &bad_row, p.overflow = &overflow;
  kernels.run(check, p, features);
  check.value(bad_row < 0, "features", "finite values",
              "NaN or infinity in row " + std::to_string(bad_row));
  check.value(overflow < 0, "features", "sums of squares below 2^52 (rescale the features)",
              "a larger one in column " + std::to_string(overflow));
}

}  // namespace pixleap
