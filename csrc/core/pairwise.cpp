#include "core/pairwise.h"

#include <memory>
#include <new>

#include "core/workspace.h"

namespace pixleap {

PairwiseSets pairwise_sets(const Check& check, const View& x, const View& y,
                           std::vector<float>& scratch, std::span<const Out> workspace,
                           int64_t least) {
  constexpr int64_t kMaxRows = int64_t{1} << 31;  // indices are kept in 32 bits
  const auto check_set = [&](const View& v) {
    check.ndim(v, 2);
    check.unit_last_stride(v);
    check.value(v.size(0) < kMaxRows, v.name, "fewer than 2^31 rows", v.size(0));
  };
  check.dtype(x, {DType::f32, DType::bf16, DType::f16});
  check_set(x);
  const View& other = y.defined ? y : x;
  if (y.defined) {
    check.same_dtype(y, x);
    check.same_device(y, x);
    check_set(y);
    check.value(y.size(1) == x.size(1), y.name, std::to_string(x.size(1)) + " columns as 'x'",
                y.size(1));
  }
  // An empty array may claim any other extent; there is nothing to keep for it.
  const bool empty = x.numel() == 0 && other.numel() == 0 && x.size(0) * other.size(0) == 0;
  const int64_t depth = empty ? 0 : x.size(1), y_rows = y.defined ? y.size(0) : 0;
  PairwiseSets sets{};
  const int64_t own = (depth + x.size(0) + y_rows) / 2 + 1;
  const int64_t passed = empty ? 0 : workspace_size(check, workspace, x, own + least);
  if (passed > 0) {
    sets.centre = workspace[0].as<float>();
    sets.largest = reinterpret_cast<uint32_t*>(sets.centre + depth + x.size(0) + y_rows);
    sets.rest = workspace[0].as<double>() + own;
    sets.rest_size = passed - own;
  } else {
    scratch.assign(static_cast<size_t>(depth + x.size(0) + y_rows), 0.0f);
    sets.centre = scratch.data();
  }
  sets.dtype = x.dtype;
  sets.depth = depth;
  sets.symmetric = !y.defined;
  float* norms = sets.centre + depth;
  sets.x = {x.data, x.size(0), x.stride(0), norms};
  sets.y = y.defined ? PairwiseSet{y.data, y_rows, y.stride(0), norms + x.size(0)} : sets.x;
  sets.scale = 1.0f;
  return sets;
}

void with_scratch(int64_t count, FunctionRef<void(float*)> body) {
  constexpr auto kAlign = std::align_val_t{64};
  const auto release = [](float* p) { ::operator delete(p, kAlign); };
  const std::unique_ptr<float, decltype(release)> memory(
      static_cast<float*>(::operator new(static_cast<size_t>(count) * sizeof(float), kAlign)),
      release);
  body(memory.get());
}

}  // namespace pixleap
