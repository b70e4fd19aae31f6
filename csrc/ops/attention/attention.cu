#include "ops/attention/cuda_mma.h"
#include "ops/attention/cuda_simt.h"
#include "ops/attention/cuda_wgmma.h"

namespace pixleap {
namespace {

template <class T, int D, bool Split>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_mma(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_mma<T, D, Split>(
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

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_simt(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_simt<D>(p, attention_work(p, first + blockIdx.x, SimtAttention<D>::kQueries));
}

template <int D>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_stream(const __grid_constant__ AttentionParams p, const int64_t first) {
  attend_stream<D>(p, attention_work(p, first + blockIdx.x, 1));
}

}  // namespace

// Which kernel runs depends on one head's queries and on types only, and so do the bits.
void attention_cuda(const AttentionParams& p, const Device& device) {
  if (p.window.near_rows)
    throw BackendError(
        "attention: argument 'mask' is a neighbourhood, for which there is no CUDA kernel");
  const int64_t queries = p.window.rows ? p.window.size() : p.queries;
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
    if (queries <= kAttentionStreamUpTo)
      return launch_attention(attention_stream<D>, p, 1, 0, device);
    using Shape = SimtAttention<D>;
    launch_attention(attention_simt<D>, p, Shape::kQueries, Shape::kBytes, device);
  });
}

}  // namespace pixleap
