#include "ops/random_normal/random_normal.h"

namespace pixleap {
namespace {
constexpr KernelTable<RandomNormalParams> kernels = PIXLEAP_KERNELS_CUDA(random_normal);
}  // namespace

void random_normal(const Out& out, int64_t count, int64_t seed, int64_t offset,
                   int64_t first_element) {
  const Check check("random_normal");
  check.dtype(out, {DType::f32, DType::bf16, DType::f16});
  check.contiguous(out);
  check.output(out);
  check.value(out.numel() == count, "out", std::to_string(count) + " elements", shape_string(out));
  check.value(first_element >= 0, "first_element", "a number >= 0", first_element);
  if (out.numel() == 0) return;
  const RandomNormalParams p{out.dtype,
                             out.data,
                             out.numel(),
                             static_cast<uint64_t>(seed),
                             static_cast<uint64_t>(offset),
                             static_cast<uint64_t>(first_element)};
  kernels.run(check, p, out);
}

}  // namespace pixleap
