#include "ops/attention/cuda_mma.h"
#include "ops/attention/cuda_simt.h"
#include "ops/attention/cuda_split.h"
#include "ops/attention/cuda_wgmma.h"

namespace pixleap {
namespace {

template <class T, int D, bool Split>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_mma(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_mma<T, D, Split, true>(
      p, attention_work(p, first + blockIdx.x, MmaAttention<T, D, Split>::kQueries));
}

template <class T, int D>
__global__ void __launch_bounds__(WgmmaAttention<T, D>::kThreads, WgmmaAttention<T, D>::kBlocks)
    attention_wgmma(const __grid_constant__ AttentionParams p, const int64_t first) {
#if defined(PIXLEAP_WGMMA)
  attend_wgmma<T, D>(
      p, [&] { return attention_work(p, first + blockIdx.x, WgmmaAttention<T, D>::kQueries); });
#endif
}

template <int D, bool Near>
__global__ void __launch_bounds__(kAttentionThreads, kSimtBlocks)
    attention_simt(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_simt<D, Near>(p, attention_work(p, first + blockIdx.x, SimtAttention<D>::kQueries));
}

// chunks: of a query, by a block each, which attention_merge follows; 1: one block has them all.
template <class KV, int D>
__global__ void __launch_bounds__(kAttentionThreads, kStreamBlocks)
    attention_stream(const __grid_constant__ AttentionParams p, const int64_t first,
                     const int64_t chunks) {
  const int64_t index = first + blockIdx.x, work = index / chunks, chunk = index % chunks;
  attend_stream<KV, D>(p, attention_work(p, work, 1), chunk,
                       chunks > 1 ? stream_part(p, work, chunk) : nullptr);
}

__global__ void __launch_bounds__(kAttentionThreads)
    attention_merge(const __grid_constant__ AttentionParams p, const int64_t first,
                    const int64_t parts) {
  const int64_t work = (first + blockIdx.x) / parts;
  merge_stream(p, attention_work(p, work, 1), work);
}

}  // namespace

// Which kernel runs depends on one head's queries and on types only, and so do the bits.
void attention_cuda(const AttentionParams& p, const Device& device) {
  const int64_t queries = p.window.rows ? p.window.size() : p.queries;
  if (attention_by_stream(p, queries))
    return with_stream_attention(p, [&]<class KV, int D>() {
      const int64_t chunks = p.split ? attention_chunks(p.keys) : 1;
      launch_attention(attention_stream<KV, D>, p, 1, 0, device, kAttentionThreads, chunks);
      if (chunks > 1)
        launch_attention(attention_merge, p, 1, 0, device, kAttentionThreads, int64_t{1});
    });
  if (attention_by_mma(p) && attention_by_wgmma(p, queries, device))
    return with_wgmma_attention(p, [&]<class T, int D>() {
      using Shape = WgmmaAttention<T, D>;
      launch_attention(attention_wgmma<T, D>, p, Shape::kQueries, Shape::kBytes, device,
                       Shape::kThreads);
    });
  if (attention_by_mma(p))
    return with_mma_attention(p, queries, [&]<class T, int D, bool Split>() {
      using Shape = MmaAttention<T, D, Split>;
      launch_attention(attention_mma<T, D, Split>, p, Shape::kQueries, Shape::kBytes, device);
    });
  with_padded_dim(p.dim, [&]<int D>() {
    using Shape = SimtAttention<D>;
    const auto kernel = p.window.near_rows ? attention_simt<D, true> : attention_simt<D, false>;
    launch_attention(kernel, p, Shape::kQueries, Shape::kBytes, device);
  });
}

}  // namespace pixleap
