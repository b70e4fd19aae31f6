// A block of queries by tensor cores: bfloat16 or float16 keys, sums and softmax in float32.
#pragma once

#include "cuda/mma.h"
#include "ops/attention/cuda_head.h"

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

// 2^x to 2^-22, without the steps that exp2f takes for subnormal results.
__device__ inline float exp2_fast(float x) {
#if defined(PIXLEAP_CUDA_EMULATE)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Element of a tile at which a row's chunk of 8 lies: rows of ldmatrix fall into different banks.
template <int D>
__device__ inline int chunk_at(int row, int chunk) {
  return row * D + (chunk ^ (row & 7)) * 8;
}

// Rows of a head in global memory.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;
  bool vectors;  // whole chunks, aligned to 16 bytes

  __device__ HeadRows(T* data, const int64_t (&strides)[3], int64_t dim)
      : data(data), stride(strides[2]) {
    vectors = reinterpret_cast<uintptr_t>(data) % 16 == 0 && ((strides[2] | dim) & 7) == 0;
  }
};

// Rows `first` on into a tile; zeros from row `limit` and from p.dim on, and nothing is read there.
template <int Rows, int D, class T>
__device__ inline void load_rows(const AttentionParams& p, const AttentionHead& h,
                                 const HeadRows<const T>& rows, int64_t first, int64_t limit,
                                 T* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < Rows * D / 8; i += kAttentionThreads) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    T* to = tile + chunk_at<D>(row, chunk);
    const bool inside = first + row < limit && chunk * 8 < p.dim;
    const T* from = rows.data;
    if (inside) from += attention_row(p, h, first + row) * rows.stride + chunk * 8;
    if (rows.vectors) {
      cp_async_16(to, from, inside);
    } else {
      for (int d = 0; d < 8; ++d) {
        T x;
        from_accumulate(0.f, x);
        if (inside && chunk * 8 + d < p.dim) x = from[d];
        to[d] = x;
      }
    }
  }
}

// Whether the rows of this thread's chunks, from `begin` on, hold NaN or infinity.
template <int Rows, int D, class T>
__device__ inline bool any_not_finite(const T* tile, int64_t begin) {
  constexpr uint32_t kExponent = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;
  bool found = false;
  for (int i = static_cast<int>(threadIdx.x); i < Rows * D / 8; i += kAttentionThreads) {
    const int row = i / (D / 8);
    if (row < begin) continue;
    const uint4 c = *reinterpret_cast<const uint4*>(tile + chunk_at<D>(row, i % (D / 8)));
    for (const uint32_t word : {c.x, c.y, c.z, c.w})
      found = found || (word & kExponent) == kExponent || (word >> 16 & kExponent) == kExponent;
  }
  return found;
}

// 8 values of a query's output.
template <class T>
__device__ inline void store_chunk(const AttentionParams& p, const AttentionHead& h,
                                   const HeadRows<T>& out, int64_t query, int chunk,
                                   const uint4& values) {
  T* to = out.data + attention_row(p, h, query) * out.stride + chunk * 8;
  if (out.vectors) {
    *reinterpret_cast<uint4*>(to) = values;
  } else {
    T from[8];
    memcpy(from, &values, sizeof from);
#pragma unroll
    for (int d = 0; d < 8; ++d)
      if (chunk * 8 + d < p.dim) to[d] = from[d];
  }
}

template <class T, int D, bool Split>
__device__ void attend_mma(const AttentionParams& p, const AttentionHead& h) {
  using Shape = MmaAttention<T, D, Split>;
  constexpr int kTile = Shape::kTile, kKeys = Shape::kKeys, kQueries = Shape::kQueries;
  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const k_tile = q_tile + kQueries * D;
  T* const v_tile = k_tile + kTile * D;
  int64_t* const seen = reinterpret_cast<int64_t*>(v_tile + kTile * D);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int first_row = Split ? 0 : warp * 16, first_key = Split ? warp * kKeys : 0;
  const HeadRows<const T> k{static_cast<const T*>(p.k) + h.k, p.k_strides, p.dim};
  const HeadRows<const T> v{static_cast<const T*>(p.v) + h.v, p.v_strides, p.dim};

  load_rows<kQueries, D>(p, h,
                         HeadRows<const T>{static_cast<const T*>(p.q) + h.q, p.q_strides, p.dim},
                         h.first_query, h.queries, q_tile);
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
  if (block.most > 0) load_rows<kTile, D>(p, h, k, 0, block.most, k_tile);
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
  float o[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // sum: of this lane

  for (int64_t j = 0; j < block.most; j += kTile) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, the last values are used
    load_rows<kTile, D>(p, h, v, j, block.most, v_tile);
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
      const bool partial = first + kKeys > mine.least, masked = attention_masked(p);
      float top[2] = {max[0], max[1]};
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = i / 2;
          float x = s[n][i] * factor;
          if (partial || masked) {
            const int64_t key = first + n * 8 + 2 * t + i % 2;
            if (key >= row_seen[r])
              x = -INFINITY;
            else if (masked)
              x = masked_score(p, h, h.first_query + first_row + g + 8 * r, key, x);
          }
          s[n][i] = x;
          top[r] = fmaxf(top[r], x);  // a NaN never becomes the maximum, but stays a NaN weight
        }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
        const float shift = softmax_shift(top[r]), decay = exp2_fast(max[r] - shift);
        max[r] = top[r];
        sum[r] *= decay;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 2 * r; i < 2 * r + 2; ++i) {
            s[n][i] = exp2_fast(s[n][i] - shift);
            sum[r] += s[n][i];
          }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) o[n][2 * r] *= decay, o[n][2 * r + 1] *= decay;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &s[2 * n + i / 2][i % 2 * 2];
          weights[n][i] = pack_pair<T>(pair[0], pair[1]);
        }
    }

    // Values that some of the block's queries see and others do not take no part in the products of
    // the latter, whose weight of 0 a NaN would survive: such a tile, with such values, goes by
    // rows.
    cp_async_wait<0>();
    bool by_rows = false;
    if (block.least < block.most && j + kTile > block.least)
      by_rows = __syncthreads_or(any_not_finite<kTile, D>(v_tile, block.least - j));
    else
      __syncthreads();
    const auto next_keys = [&] {
      if (j + kTile < block.most) load_rows<kTile, D>(p, h, k, j + kTile, block.most, k_tile);
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
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          *reinterpret_cast<uint32_t*>(own + (g + i % 2 * 8) * kKeys + n * 16 + i / 2 * 8 + 2 * t) =
              weights[n][i];
      __syncwarp();
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

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
  }
  const HeadRows<T> out{static_cast<T*>(p.out) + h.out, p.out_strides, p.dim};
  if constexpr (!Split) {
    __syncwarp();  // the warp's queries are used: their rows take its output
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = 1.f / sum[r];
      const bool none = sum[r] == 0.f;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        *reinterpret_cast<uint32_t*>(q_tile + chunk_at<D>(first_row + g + 8 * r, n) + 2 * t) =
            pack_pair<T>(none ? 0.f : o[n][2 * r] * inverse,
                         none ? 0.f : o[n][2 * r + 1] * inverse);
      if (t == 0 && first_row + g + 8 * r < rows)
        store_lse(p, h, h.first_query + first_row + g + 8 * r, max[r], sum[r]);
    }
    __syncwarp();
    for (int i = lane; i < 16 * D / 8; i += 32) {
      const int row = first_row + i / (D / 8), chunk = i % (D / 8);
      if (row < rows && chunk * 8 < p.dim)
        store_chunk(p, h, out, h.first_query + row, chunk,
                    *reinterpret_cast<const uint4*>(q_tile + chunk_at<D>(row, chunk)));
    }
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
