#include "cuda/launch.h"
#include "ops/linear_pack/linear_pack.h"

namespace pixleap {
namespace {

constexpr int kBlock = 128;
constexpr unsigned kAll = 0xffffffffu;

// One thread per number, in the order in which they are written.
template <class T, class P>
__global__ void __launch_bounds__(kBlock) pack_kernel(const LinearPackParams p, int64_t depth) {
  constexpr int64_t kSteps = 4 / sizeof(P), kRow = kLinearPanel * kSteps;
  const int64_t total = (p.n + kLinearPanel - 1) / kLinearPanel * depth * kLinearPanel;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kBlock) {
    const int64_t panel = i / (depth * kLinearPanel), rest = i % (depth * kLinearPanel);
    const int64_t k = rest / kRow * kSteps + rest % kSteps;
    const int64_t n = panel * kLinearPanel + rest % kRow / kSteps;
    float x = 0.f;
    if (n < p.n && k < p.k) x = to_accumulate(static_cast<const T*>(p.weight)[n * p.stride + k]);
    from_accumulate(x, static_cast<P*>(p.packed)[i]);
  }
}

// One warp per row, also for the rows of zeros of the last panel.
template <class T>
__global__ void __launch_bounds__(kBlock) quantise_kernel(const LinearPackParams p, int64_t depth) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t rows = (p.n + kLinearPanel - 1) / kLinearPanel * kLinearPanel;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32; n < rows;
       n += static_cast<int64_t>(gridDim.x) * (kBlock / 32)) {
    const T* w = static_cast<const T*>(p.weight) + n * p.stride;
    const int64_t count = n < p.n ? p.k : 0;
    float most = 0.f;
    bool bad = false;
    for (int64_t k = lane; k < count; k += 32) {
      const float x = fabsf(to_accumulate(w[k]));
      bad = bad || !(x < INFINITY);
      most = fmaxf(most, x);
    }
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAll, most, step));
    bad = __any_sync(kAll, bad);
    const float scale = bad ? NAN : most / 127.f, divisor = scale > 0.f ? scale : 1.f;
    if (lane == 0 && n < p.n) p.scales[n] = scale;
    int8_t* out = static_cast<int8_t*>(p.packed) + n / kLinearPanel * depth * kLinearPanel;
    for (int64_t k = lane; k < depth; k += 32) {
      float x = 0.f;
      if (k < count && !bad) x = rintf(fminf(fmaxf(to_accumulate(w[k]) / divisor, -127.f), 127.f));
      out[(k / 4 * kLinearPanel + n % kLinearPanel) * 4 + k % 4] = static_cast<int8_t>(x);
    }
  }
}

}  // namespace

void linear_pack_cuda(const LinearPackParams& p, const Device& device) {
  const int64_t panels = (p.n + kLinearPanel - 1) / kLinearPanel;
  const int64_t depth = linear_padded_depth(p.packed_dtype, p.k);
  if (panels == 0 || (depth == 0 && p.packed_dtype != DType::i8)) return;  // scales remain
  const auto pack = [&]<class T>() {
    const unsigned grid = grid_for(panels * kLinearPanel * depth, kBlock);
    if (p.packed_dtype == DType::f32)
      launch(pack_kernel<T, float>, grid, kBlock, device, p, depth);
    else if (p.packed_dtype == DType::bf16)
      launch(pack_kernel<T, __nv_bfloat16>, grid, kBlock, device, p, depth);
    else
      launch(quantise_kernel<T>, grid_for(panels * kLinearPanel * 32, kBlock), kBlock, device, p,
             depth);
  };
  if (p.dtype == DType::f32)
    pack.template operator()<float>();
  else if (p.dtype == DType::bf16)
    pack.template operator()<__nv_bfloat16>();
  else
    pack.template operator()<__half>();
}

}  // namespace pixleap
