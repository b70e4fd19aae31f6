// A block of queries by tensor cores: bfloat16 or float16 keys, sums and softmax in float32.
#pragma once

#include "ops/attention/cuda_tile.h"

namespace pixleap {

constexpr int64_t kAttentionSplitUpTo = 16;  // queries: one warp's rows

// Four warps have 16 queries each and all keys, or all of them the same 16 and a quarter of a tile
// of keys each (Split). D: the dimension, padded with zeros.
template <class T, int D, bool Split>
struct MmaAttention {
  static constexpr int kQueries = Split ? 16 : 64;
  static constexpr int kTile = D == 256 && !Split ? 32 : 64;             // keys
  static constexpr int kKeys = Split ? kTile / kAttentionWarps : kTile;  // of a warp
  // Tiles and how many keys the queries see: all of it dynamic, as what is static counts towards
  // the 48 KiB too from which more has to be asked for.
  static constexpr size_t kBytes =
      size_t{kQueries + 2 * kTile} * D * sizeof(T) + kQueries * sizeof(int64_t);
  static constexpr bool kHoldQueries = D <= 128;  // in registers
};

// Near: there may be a neighbourhood.
template <class T, int D, bool Split, bool Near>
__device__ void attend_mma(const AttentionParams& p, const AttentionHead& h) {
  using Shape = MmaAttention<T, D, Split>;
  constexpr int kTile = Shape::kTile, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  using KeyTile = RowTile<kTile, D>;
  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const k_tile = q_tile + kQueries * D;
  T* const v_tile = k_tile + kTile * D;
  int64_t* const seen = reinterpret_cast<int64_t*>(v_tile + kTile * D);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int first_row = Split ? 0 : warp * 16, first_key = Split ? warp * kKeys : 0;
  const HeadRows<const T> k{static_cast<const T*>(p.k) + h.k, p.k_strides, p.dim};
  const HeadRows<const T> v{static_cast<const T*>(p.v) + h.v, p.v_strides, p.dim};

  load_rows<RowTile<kQueries, D>, kAttentionThreads>(
      p, h, HeadRows<const T>{static_cast<const T*>(p.q) + h.q, p.q_strides, p.dim}, h.first_query,
      h.queries, q_tile);
  cp_async_commit();
  for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kAttentionThreads)
    seen[r] = attention_seen(p, h, h.first_query + r);
  __syncthreads();
  const int64_t left = h.queries - h.first_query;
  const int rows = left < kQueries ? static_cast<int>(left) : kQueries;
  const SeenKeys block = seen_keys(seen, rows, lane);
  const SeenKeys mine =
      Split ? block : seen_keys(seen + first_row, min(rows - first_row, 16), lane);
  const int64_t row_seen[2] = {seen[first_row + g], seen[first_row + g + 8]};
  if (block.most > 0) load_rows<KeyTile, kAttentionThreads>(p, h, k, 0, block.most, k_tile);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();

  const auto load_queries = [&](int step, uint32_t(&a)[4]) {
    ldmatrix_x4(a, q_tile + chunk_at<D>(first_row + lane % 16, step * 2 + lane / 16));
  };
  uint32_t held[Shape::kHoldQueries ? D / 16 : 1][4];
  if constexpr (Shape::kHoldQueries)
    for (int i = 0; i < D / 16; ++i) load_queries(i, held[i]);
  const float factor = p.scale * kLog2OfE;
  float o[D / 8][4] = {};
  SoftmaxRows softmax;

  for (int64_t j = 0; j < block.most; j += kTile) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, the last values are used
    load_rows<KeyTile, kAttentionThreads>(p, h, v, j, block.most, v_tile);
    cp_async_commit();

    const int64_t first = j + first_key;
    const bool works = first < mine.most;
    uint32_t weights[kKeys / 16][4] = {};
    if (works) {
      float s[kKeys / 8][4] = {};
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        uint32_t a[4];
        if constexpr (!Shape::kHoldQueries) load_queries(i, a);
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
          uint32_t b[4];
          ldmatrix_x4(b, k_tile + chunk_at<D>(first_key + n * 16 + lane / 16 * 8 + lane % 8,
                                              i * 2 + lane / 8 % 2));
          const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
          if constexpr (Shape::kHoldQueries) {
            mma_m16n8k16<T>(s[2 * n], held[i], low);
            mma_m16n8k16<T>(s[2 * n + 1], held[i], high);
          } else {
            mma_m16n8k16<T>(s[2 * n], a, low);
            mma_m16n8k16<T>(s[2 * n + 1], a, high);
          }
        }
      }
      float decay[2];
      const int limit[2] = {keys_left(row_seen[0], first, kKeys),
                            keys_left(row_seen[1], first, kKeys)};
      softmax_tile<true, Near>(p, h, s, factor, first + kKeys > mine.least, limit,
                               h.first_query + first_row + g, first, softmax, decay);
      scale_rows(o, decay);
      pack_weights<T>(s, weights);
    }

    // Values that some of the block's queries see and others do not take no part in the products of
    // the latter, whose weight of 0 a NaN would survive: such a tile, with such values, goes by
    // rows.
    cp_async_wait<0>();
    bool by_rows = false;
    if (block.least < block.most && j + kTile > block.least)
      by_rows =
          __syncthreads_or(any_not_finite<KeyTile, kAttentionThreads>(v_tile, block.least - j));
    else
      __syncthreads();
    const auto next_keys = [&] {
      if (j + kTile < block.most)
        load_rows<KeyTile, kAttentionThreads>(p, h, k, j + kTile, block.most, k_tile);
      cp_async_commit();
    };
    if (!by_rows) {
      next_keys();
      if (!works) continue;
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          uint32_t b[4];
          ldmatrix_x4_trans(
              b, v_tile + chunk_at<D>(first_key + n * 16 + lane % 16, i * 2 + lane / 16));
          const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
          mma_m16n8k16<T>(o[2 * i], weights[n], low);
          mma_m16n8k16<T>(o[2 * i + 1], weights[n], high);
        }
      continue;
    }
    if (works) {
      T* const own = k_tile + warp * 16 * kKeys;  // (16, kKeys), in place of the keys
      share_weights(weights, own);
#pragma unroll 1
      for (int key = 0; key < kKeys; ++key)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (first + key >= row_seen[r]) continue;
          const float weight = to_accumulate(own[(g + 8 * r) * kKeys + key]);
#pragma unroll
          for (int n = 0; n < D / 8; ++n) {
            const T* value = v_tile + chunk_at<D>(first_key + key, n) + 2 * t;
            o[n][2 * r] = fmaf(weight, to_accumulate(value[0]), o[n][2 * r]);
            o[n][2 * r + 1] = fmaf(weight, to_accumulate(value[1]), o[n][2 * r + 1]);
          }
        }
    }
    __syncthreads();
    next_keys();
  }

  softmax.add_lanes();
  const float(&max)[2] = softmax.max, (&sum)[2] = softmax.sum;
  const HeadRows<T> out{static_cast<T*>(p.out) + h.out, p.out_strides, p.dim};
  if constexpr (!Split) {
    __syncwarp();  // the warp's queries are used: their rows take its output
    store_rows<RowTile<kQueries, D>>(p, h, softmax, o, first_row, rows, out, q_tile);
  } else {
    __shared__ float maxima[kAttentionWarps][16], sums[kAttentionWarps][16];
    float* const parts = reinterpret_cast<float*>(k_tile);  // (warps, 16, D), in place of k and v
    static_assert(sizeof(float) * kAttentionWarps * 16 == 2 * kTile * sizeof(T));
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (t == 0) maxima[warp][g + 8 * r] = max[r], sums[warp][g + 8 * r] = sum[r];
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<float2*>(parts + (warp * 16 + g + 8 * r) * D + n * 8 + 2 * t) =
            make_float2(o[n][2 * r], o[n][2 * r + 1]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < 16 * D / 8; i += kAttentionThreads) {
      const int row = i / (D / 8), chunk = i % (D / 8);
      if (row >= rows || chunk * 8 >= p.dim) continue;
      float most = maxima[0][row], factors[kAttentionWarps], total = 0.f;
      for (int w = 1; w < kAttentionWarps; ++w) most = fmaxf(most, maxima[w][row]);
      for (int w = 0; w < kAttentionWarps; ++w) {
        factors[w] = exp2_fast(maxima[w][row] - softmax_shift(most));
        total = fmaf(sums[w][row], factors[w], total);
      }
      const float inverse = 1.f / total;
      uint32_t pairs[4];
#pragma unroll
      for (int e = 0; e < 8; e += 2) {
        float x[2] = {};
        for (int w = 0; w < kAttentionWarps; ++w)
          for (int k2 = 0; k2 < 2; ++k2)
            x[k2] = fmaf(parts[(w * 16 + row) * D + chunk * 8 + e + k2], factors[w], x[k2]);
        const bool none = total == 0.f;
        pairs[e / 2] = pack_pair<T>(none ? 0.f : x[0] * inverse, none ? 0.f : x[1] * inverse);
      }
      store_chunk(p, h, out, h.first_query + row, chunk,
                  make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
      if (chunk == 0) store_lse(p, h, h.first_query + row, most, total);
    }
  }
}

inline bool attention_by_mma(const AttentionParams& p) {
  return p.dtype != DType::f32 && p.kv_dtype == p.dtype;
}

// Calls f.template operator()<T, D, Split>() for these parameters and `queries` of a head.
template <class F>
void with_mma_attention(const AttentionParams& p, int64_t queries, F&& f) {
  const auto with_type = [&]<class T>() {
    with_padded_dim(p.dim, [&]<int D>() {
      if (queries <= kAttentionSplitUpTo)
        f.template operator()<T, D, true>();
      else
        f.template operator()<T, D, false>();
    });
  };
  if (p.dtype == DType::bf16)
    with_type.template operator()<__nv_bfloat16>();
  else
    with_type.template operator()<__half>();
}

}  // namespace pixleap
