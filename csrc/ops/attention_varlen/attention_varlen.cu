#include <algorithm>

#include "ops/attention/cuda_mma.h"
#include "ops/attention/cuda_simt.h"
#include "ops/attention/cuda_split.h"
#include "ops/attention/cuda_wgmma.h"
#include "ops/attention_varlen/attention_varlen.h"

namespace pixleap {
namespace {

// Sequences travel with the launch, 4 KiB of arguments at most: no copy, no allocation, nothing to
// wait for, and a graph keeps them.
constexpr int kMost = 64;

struct Group {
  AttentionParams shared;
  AttentionSequence sequences[kMost];
  int64_t works[kMost + 1];  // those of sequence i are works[i] to works[i + 1] - 1
  int count;
};
static_assert(sizeof(Group) <= 4096);

__device__ AttentionHead varlen_work(const Group& group, int64_t index, int rows) {
  int low = 0, high = group.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (group.works[middle] <= index ? low : high) = middle;
  }
  const AttentionSequence& s = group.sequences[low];
  index -= group.works[low];
  const int64_t blocks = (s.queries + rows - 1) / rows, block = blocks - 1 - index % blocks;
  return attention_head(group.shared, 0, s.slot, index / blocks, s.row, s.queries, s.keys,
                        block * rows);
}

template <class T, int D, bool Split>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_varlen_mma(const __grid_constant__ Group g) {
  attend_mma<T, D, Split, false>(g.shared,
                                 varlen_work(g, blockIdx.x, MmaAttention<T, D, Split>::kQueries));
}

template <class T, int D>
__global__ void __launch_bounds__(WgmmaAttention<T, D>::kThreads, WgmmaAttention<T, D>::kBlocks)
    attention_varlen_wgmma(const __grid_constant__ Group g) {
#if defined(PIXLEAP_WGMMA)
  attend_wgmma<T, D>(g.shared,
                     [&] { return varlen_work(g, blockIdx.x, WgmmaAttention<T, D>::kQueries); });
#endif
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads, kSimtBlocks)
    attention_varlen_simt(const __grid_constant__ Group g) {
  attend_simt<D>(g.shared, varlen_work(g, blockIdx.x, SimtAttention<D>::kQueries));
}

template <class KV, int D>
__global__ void __launch_bounds__(kAttentionThreads, kStreamBlocks)
    attention_varlen_stream(const __grid_constant__ Group g) {
  attend_stream<KV, D>(g.shared, varlen_work(g, blockIdx.x, 1), 0, nullptr);
}

// The sequences of `least` to `most` queries, in as many launches as their descriptions take.
template <class Kernel>
void launch_sequences(Kernel kernel, const AttentionVarlenParams& p, int64_t least, int64_t most,
                      int rows, size_t shared_bytes, const Device& device,
                      int threads = kAttentionThreads) {
  Group g{};
  g.shared = p.shared;
  const auto run = [&] {
    if (!g.count) return;
    const LaunchShape shape{dim3(static_cast<unsigned>(g.works[g.count])),
                            dim3(static_cast<unsigned>(threads)), shared_bytes};
    launch(kernel, shape, device, g);
    g.count = 0;
  };
  for (int64_t i = 0; i < p.sequence_count; ++i) {
    const AttentionSequence& s = p.sequences[i];
    if (s.queries < least || s.queries > most) continue;
    const int64_t works = p.shared.heads * ((s.queries + rows - 1) / rows);
    if (g.count == kMost || (g.count && g.works[g.count] + works > INT_MAX)) run();
    g.sequences[g.count] = s;
    g.works[g.count + 1] = g.works[g.count] + works;
    ++g.count;
  }
  run();
}

}  // namespace

// Sequences take the kernels that attention of them alone takes, by their numbers of queries.
void attention_varlen_cuda(const AttentionVarlenParams& p, const Device& device) {
  const bool mma = attention_by_mma(p.shared);
  const int64_t streamed = mma ? kAttentionStreamHalfUpTo : kAttentionStreamUpTo;
  with_stream_attention(p.shared, [&]<class KV, int D>() {
    launch_sequences(attention_varlen_stream<KV, D>, p, 0, streamed, 1, 0, device);
  });
  if (!mma)
    return with_padded_dim(p.shared.dim, [&]<int D>() {
      using Shape = SimtAttention<D>;
      launch_sequences(attention_varlen_simt<D>, p, streamed + 1, INT64_MAX, Shape::kQueries,
                       Shape::kBytes, device);
    });
  const auto by_mma = [&](int64_t least, int64_t most) {
    with_mma_attention(p.shared, most, [&]<class T, int D, bool Split>() {
      using Shape = MmaAttention<T, D, Split>;
      launch_sequences(attention_varlen_mma<T, D, Split>, p, least, most, Shape::kQueries,
                       Shape::kBytes, device);
    });
  };
  by_mma(streamed + 1, kAttentionSplitUpTo);
  if (!attention_by_wgmma(p.shared, kAttentionWgmmaFrom, device))
    return by_mma(kAttentionSplitUpTo + 1, INT64_MAX);
  by_mma(kAttentionSplitUpTo + 1, kAttentionWgmmaFrom - 1);
  with_wgmma_attention(p.shared, [&]<class T, int D>() {
    using Shape = WgmmaAttention<T, D>;
    launch_sequences(attention_varlen_wgmma<T, D>, p, kAttentionWgmmaFrom, INT64_MAX,
                     Shape::kQueries, Shape::kBytes, device, Shape::kThreads);
  });
}

}  // namespace pixleap
