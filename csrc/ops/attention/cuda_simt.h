// A block of queries without tensor cores: float32 products, any element types. Keys and values
// become float32 on their way to shared memory.
#pragma once

#include "ops/attention/cuda_head.h"

namespace pixleap {

// A warp has 4 queries; a lane has one of 32 keys, then every 32nd dimension.
template <int D>
struct SimtAttention {
  static constexpr int kRows = 4, kQueries = kRows * kAttentionWarps, kTile = 32;
  static constexpr int kStride = D + 4;  // of a tile's rows: lanes read 16 bytes without conflict
  static constexpr size_t kBytes = sizeof(float) * (kQueries * D + kTile * kStride);
};

// Rows `first` to `limit` as float32, times their scales; zeros where p.dim ends.
template <int Rows, int D, int Stride>
__device__ inline void load_floats(const AttentionParams& p, const AttentionHead& h,
                                   const void* data, DType dtype, int64_t at, int64_t stride,
                                   const float* scale, int64_t scale_at, int64_t scale_stride,
                                   float factor, int64_t first, int64_t limit, float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < Rows * D; i += kAttentionThreads) {
    const int row = i / D, d = i % D;
    float x = 0.f;
    if (first + row < limit && d < p.dim) {
      const int64_t from = attention_row(p, h, first + row);
      x = element_at(data, dtype, at + from * stride + d);
      x *= scale ? scale[scale_at + from * scale_stride] : factor;
    }
    tile[row * Stride + d] = x;
  }
}

// Blocks that an SM has at least: for more, the compiler would spill registers.
constexpr int kSimtBlocks = 3;

// Near: a neighbourhood, whose places would cost all others registers.
template <int D, bool Near = false>
__device__ void attend_simt(const AttentionParams& p, const AttentionHead& h) {
  using Shape = SimtAttention<D>;
  constexpr int kRows = Shape::kRows, kQueries = Shape::kQueries, kTile = Shape::kTile;
  constexpr int kStride = Shape::kStride;
  __shared__ int64_t seen[kQueries];
  __shared__ __align__(16) float weights[kAttentionWarps][kRows][kTile];
  float* const queries = reinterpret_cast<float*>(dynamic_shared());
  float* const tile = queries + kQueries * D;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  load_floats<kQueries, D, D>(p, h, p.q, p.dtype, h.q, p.q_strides[2], nullptr, 0, 0,
                              p.scale * kLog2OfE, h.first_query, h.queries, queries);
  for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kAttentionThreads)
    seen[r] = attention_seen(p, h, h.first_query + r);
  __syncthreads();
  const int64_t left = h.queries - h.first_query;
  const int rows = left < kQueries ? static_cast<int>(left) : kQueries, own = warp * kRows;
  const int64_t most = seen_keys(seen, rows, lane).most;
  const int64_t mine = seen_keys(seen + own, min(rows - own, kRows), lane).most;
  const float* const q = queries + own * D;

  float o[kRows][D / 32] = {}, max[kRows], sum[kRows] = {};  // sum: of this lane's keys
#pragma unroll
  for (int r = 0; r < kRows; ++r) max[r] = -INFINITY;
  for (int64_t j = 0; j < most; j += kTile) {
    __syncthreads();
    load_floats<kTile, D, kStride>(p, h, p.k, p.kv_dtype, h.k, p.k_strides[2], p.k_scale, h.k_scale,
                                   p.k_scale_strides[2], 1.f, j, most, tile);
    __syncthreads();
    if (j < mine) {
      float s[kRows] = {};
#pragma unroll 4
      for (int d = 0; d < D; d += 4) {
        const float4 key = *reinterpret_cast<const float4*>(tile + lane * kStride + d);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float4 x = *reinterpret_cast<const float4*>(q + r * D + d);
          s[r] = fmaf(x.x, key.x, s[r]);
          s[r] = fmaf(x.y, key.y, s[r]);
          s[r] = fmaf(x.z, key.z, s[r]);
          s[r] = fmaf(x.w, key.w, s[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (j + lane >= seen[own + r] ||
            (Near && attention_far(p, h, h.first_query + own + r, j + lane)))
          s[r] = -INFINITY;
        else if (!Near && p.mask)
          s[r] = added_score(p, h, h.first_query + own + r, j + lane, s[r]);
        float top = fmaxf(max[r], s[r]);  // a NaN never becomes it, but stays a NaN weight
        for (int step = 16; step; step /= 2)
          top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step));
        const float shift = softmax_shift(top), decay = exp2f(max[r] - shift);
        const float weight = exp2f(s[r] - shift);
        max[r] = top;
        sum[r] = fmaf(sum[r], decay, weight);
        weights[warp][r][lane] = weight;
#pragma unroll
        for (int i = 0; i < D / 32; ++i) o[r][i] *= decay;
      }
    }
    __syncthreads();
    load_floats<kTile, D, kStride>(p, h, p.v, p.kv_dtype, h.v, p.v_strides[2], p.v_scale, h.v_scale,
                                   p.v_scale_strides[2], 1.f, j, most, tile);
    __syncthreads();
    const int keys = mine - j < kTile ? static_cast<int>(mine - j) : kTile;
    for (int key = 0; key < keys; ++key) {
      float value[D / 32];
#pragma unroll
      for (int i = 0; i < D / 32; ++i) value[i] = tile[key * kStride + i * 32 + lane];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (j + key >= seen[own + r]) continue;  // be they NaN
        const float weight = weights[warp][r][key];
#pragma unroll
        for (int i = 0; i < D / 32; ++i) o[r][i] = fmaf(weight, value[i], o[r][i]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int step = 16; step; step /= 2) sum[r] += __shfl_xor_sync(kAllLanes, sum[r], step);
    if (own + r >= rows) continue;
    const int64_t query = h.first_query + own + r;
    const int64_t to = h.out + attention_row(p, h, query) * p.out_strides[2];
    const float inverse = 1.f / sum[r];
#pragma unroll
    for (int i = 0; i < D / 32; ++i)
      if (i * 32 + lane < p.dim)
        attention_store(p.out, p.dtype, to + i * 32 + lane,
                        sum[r] == 0.f ? 0.f : o[r][i] * inverse);
    if (lane == 0) store_lse(p, h, query, max[r], sum[r]);
  }
}

}  // namespace pixleap
