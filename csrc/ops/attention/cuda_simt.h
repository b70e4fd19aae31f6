// A block of queries without tensor cores: float32 products, any element types. Keys and values
// become float32 on their way to shared memory.
#pragma once

#include "ops/attention/cuda_head.h"

namespace pixleap {

constexpr int64_t kAttentionStreamUpTo = 4;  // queries, which take a block each

// ---- Tiles: a warp has 4 queries; a lane has one of 32 keys, then every 32nd dimension ----

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

template <int D>
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
        if (j + lane >= seen[own + r])
          s[r] = -INFINITY;
        else if (attention_masked(p))
          s[r] = masked_score(p, h, h.first_query + own + r, j + lane, s[r]);
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

// ---- Streams: one query; 8 lanes take every 16th key, and are merged at the end ----

template <int D>
struct StreamAttention {
  static constexpr int kLanes = 8, kStreams = kAttentionThreads / kLanes;
  static constexpr int kKeys = 4;  // of a stream at a time, for their loads to overlap
};

template <int D>
__device__ void attend_stream(const AttentionParams& p, const AttentionHead& h) {
  using Shape = StreamAttention<D>;
  constexpr int kLanes = Shape::kLanes, kStreams = Shape::kStreams, kKeys = Shape::kKeys;
  constexpr int kOwn = D / kLanes;  // dimensions of a lane: lane, lane + 8, ...
  __shared__ float parts[kStreams][D], maxima[kStreams], sums[kStreams];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int stream = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t seen = attention_seen(p, h, h.first_query);
  const int64_t query = attention_row(p, h, h.first_query);
  float q[kOwn], o[kOwn] = {}, max = -INFINITY, sum = 0.f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int d = i * kLanes + lane;
    q[i] = d < p.dim
               ? element_at(p.q, p.dtype, h.q + query * p.q_strides[2] + d) * (p.scale * kLog2OfE)
               : 0.f;
  }
  for (int64_t j = 0; j < seen; j += kStreams * kKeys) {
    float s[kKeys];
    int64_t row[kKeys];
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
      const int64_t key = j + n * kStreams + stream;
      s[n] = 0.f;
      if (key >= seen) continue;
      row[n] = attention_row(p, h, key);
      const int64_t from = h.k + row[n] * p.k_strides[2];
      const float scale = p.k_scale ? p.k_scale[h.k_scale + row[n] * p.k_scale_strides[2]] : 1.f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int d = i * kLanes + lane;
        if (d < p.dim) s[n] = fmaf(q[i], element_at(p.k, p.kv_dtype, from + d) * scale, s[n]);
      }
    }
    float top = max;
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
      const int64_t key = j + n * kStreams + stream;
      for (int step = kLanes / 2; step; step /= 2) s[n] += __shfl_xor_sync(kAllLanes, s[n], step);
      if (key >= seen)
        s[n] = -INFINITY;
      else if (p.mask)
        s[n] = masked_score(p, h, h.first_query, key, s[n]);
      top = fmaxf(top, s[n]);
    }
    const float shift = softmax_shift(top), decay = exp2f(max - shift);
    max = top;
    sum *= decay;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) o[i] *= decay;
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
      if (j + n * kStreams + stream >= seen) continue;
      const float weight = exp2f(s[n] - shift);
      const float scale = p.v_scale ? p.v_scale[h.v_scale + row[n] * p.v_scale_strides[2]] : 1.f;
      const int64_t from = h.v + row[n] * p.v_strides[2];
      sum += weight;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int d = i * kLanes + lane;
        if (d < p.dim) o[i] = fmaf(weight * scale, element_at(p.v, p.kv_dtype, from + d), o[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) parts[stream][i * kLanes + lane] = o[i];
  if (lane == 0) maxima[stream] = max, sums[stream] = sum;
  __syncthreads();
  float most = maxima[0], total = 0.f;
  for (int i = 1; i < kStreams; ++i) most = fmaxf(most, maxima[i]);
  for (int i = 0; i < kStreams; ++i)
    total = fmaf(sums[i], exp2f(maxima[i] - softmax_shift(most)), total);
  const float inverse = 1.f / total;
  for (int d = static_cast<int>(threadIdx.x); d < p.dim; d += kAttentionThreads) {
    float x = 0.f;
    for (int i = 0; i < kStreams; ++i)
      x = fmaf(parts[i][d], exp2f(maxima[i] - softmax_shift(most)), x);
    attention_store(p.out, p.dtype, h.out + query * p.out_strides[2] + d,
                    total == 0.f ? 0.f : x * inverse);
  }
  if (threadIdx.x == 0) store_lse(p, h, h.first_query, most, total);
}

}  // namespace pixleap
