#include <algorithm>

#include "cuda/kv_append.h"
#include "ops/kv_append_varlen/kv_append_varlen.h"

namespace pixleap {
namespace {

// Sequences travel with the launch, 4 KiB of arguments at most: no copy, no allocation, nothing to
// wait for, and a graph keeps them.
constexpr int64_t kMost = 128;

struct Group {
  KvAppendParams shared;
  KvAppendSequence sequences[kMost];
  int64_t count, first, last;  // rows
};
static_assert(sizeof(Group) <= 4096);

template <class T>
__global__ void __launch_bounds__(kAppendBlock) kv_append_varlen_kernel(const Group g) {
  const KvAppendParams& p = g.shared;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kAppendBlock / 32);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kAppendBlock / 32) + threadIdx.x / 32;
       i < (g.last - g.first) * p.heads; i += warps) {
    const int64_t head = i % p.heads, row = g.first + i / p.heads;
    int64_t low = 0, high = g.count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (g.sequences[middle].row <= row ? low : high) = middle;
    }
    const KvAppendSequence s = g.sequences[low];
    append_head(p, head, static_cast<const T*>(p.qkv) + row * p.qkv_strides[1],
                static_cast<T*>(p.out) + row * p.out_strides[2], 0, row, s.slot,
                s.position + row - s.row, lane);
  }
}

}  // namespace

void kv_append_varlen_cuda(const KvAppendVarlenParams& p, const Device& device) {
  Group g{};
  g.shared = p.shared;
  for (int64_t begin = 0; begin < p.count; begin += kMost) {
    g.count = std::min(kMost, p.count - begin);
    std::copy_n(p.sequences + begin, g.count, g.sequences);
    g.first = g.sequences[0].row;
    g.last = begin + g.count < p.count ? p.sequences[begin + g.count].row : p.shared.length;
    const unsigned grid = grid_for((g.last - g.first) * p.shared.heads * 32, kAppendBlock);
    with_append_type(p.shared.dtype, [&]<class T>() {
      launch(kv_append_varlen_kernel<T>, grid, kAppendBlock, device, g);
    });
  }
}

}  // namespace pixleap
