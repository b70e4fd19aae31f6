#include "ops/hadamard_projection/hadamard_projection.h"

#include <bit>

#include "core/workspace.h"

namespace pixleap {
namespace {

constexpr KernelTable<HadamardProjectionParams> kernels = PIXLEAP_KERNELS_CUDA(hadamard_projection);

}  // namespace

void hadamard_projection(const Out& out, std::span<const Out> workspace, const View& x,
                         const View& flips, int64_t count) {
  const Check check("hadamard_projection");
  check.dtype(x, {DType::f32, DType::bf16, DType::f16});
  check.ndim(x, 2);
  check.unit_last_stride(x);
  const int64_t depth = x.size(1);
  check.value(depth >= 1 && depth <= kHadamardMaxSize, "x", "1 to 2^20 columns", depth);
  const auto size = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(depth)));
  check.dtype(flips, {DType::u8});
  check.same_device(flips, x);
  check.shape(flips, {kHadamardRounds, size});
  check.contiguous(flips);
  check.value(count >= 0 && count <= size, "count", "0 to " + std::to_string(size), count);
  check.dtype(out, {DType::f32});
  check.same_device(out, x);
  check.shape(out, {count, x.size(0)});
  check.unit_last_stride(out);
  check.output(out);
  check.no_overlap(out, x, false);
  check.no_overlap(out, flips, false);
  HadamardProjectionParams p{};
  p.x = x.data, p.dtype = x.dtype;
  p.rows = x.size(0), p.depth = depth, p.stride = x.stride(0);
  p.flips = flips.as<const uint8_t>();
  p.size = size;
  p.out = out.as<float>();
  p.count = count, p.out_stride = out.stride(0);
  if (out.numel() > 0 && size > kHadamardShared) {
    p.slot_count = workspace_size(check, workspace, x, size / 2) * 2 / size;
    if (p.slot_count > 0) p.slots = workspace[0].as<float>();
  }
  if (out.numel() > 0) kernels.run(check, p, x);
}

}  // namespace pixleap
