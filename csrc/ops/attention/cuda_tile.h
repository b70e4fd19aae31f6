// Tiles of a head's rows in shared memory, and the softmax of score fragments: what the tensor core
// kernels of attention share.
#pragma once

#include "cuda/mma.h"
#include "ops/attention/cuda_head.h"

namespace pixleap {

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

// A tile of `Rows` rows of D: chunks by chunk_at.
template <int Rows, int D>
struct RowTile {
  static constexpr int kRows = Rows, kDim = D;
  __device__ static int at(int row, int chunk) { return chunk_at<D>(row, chunk); }
};
// The same in columns of 64 elements one after the other, as wgmma reads rows of 128 bytes.
template <int Rows, int D>
struct ColumnTile {
  static constexpr int kRows = Rows, kDim = D;
  __device__ static int at(int row, int chunk) {
    return chunk / 8 * Rows * 64 + chunk_at<64>(row, chunk % 8);
  }
};

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
template <class Tile, int Threads, class T>
__device__ inline void load_rows(const AttentionParams& p, const AttentionHead& h,
                                 const HeadRows<const T>& rows, int64_t first, int64_t limit,
                                 T* tile) {
  constexpr int kChunks = Tile::kDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kChunks; i += Threads) {
    const int row = i / kChunks, chunk = i % kChunks;
    T* to = tile + Tile::at(row, chunk);
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

// NaN or infinity, of the bits of a T.
template <class T>
__device__ inline bool not_finite(uint32_t bits) {
  constexpr uint32_t kExponent = std::is_same_v<T, __half> ? 0x7c00u : 0x7f80u;
  return (bits & kExponent) == kExponent;
}

// Whether the rows of this thread's chunks, from `begin` on, hold NaN or infinity.
template <class Tile, int Threads, class T>
__device__ inline bool any_not_finite(const T* tile, int64_t begin) {
  constexpr int kChunks = Tile::kDim / 8;
  bool found = false;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kChunks; i += Threads) {
    const int row = i / kChunks;
    if (row < begin) continue;
    const uint4 c = *reinterpret_cast<const uint4*>(tile + Tile::at(row, i % kChunks));
    for (const uint32_t word : {c.x, c.y, c.z, c.w})
      found = found || not_finite<T>(word) || not_finite<T>(word >> 16);
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

// ---- Fragments: a lane has columns 2 t, 2 t + 1 of every 8 of two rows, g and g + 8 ----

struct SoftmaxRows {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // sum: of this lane's keys

  __device__ void add_lanes() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    }
  }
};

// How many of `count` keys from `first` on are among the first `seen`.
__device__ inline int keys_left(int64_t seen, int64_t first, int count) {
  return static_cast<int>(seen < first ? 0 : seen - first > count ? count : seen - first);
}

// Scores, times `factor`, to weights of queries `query` and `query` + 8; keys from `first` on.
// decay: what earlier sums are to be multiplied by. partial: not all of the keys may be seen.
// limit: how many of them the two see. Array, Near: there may be a mask array, a neighbourhood.
template <bool Array, bool Near, int Tiles>
__device__ inline void softmax_tile(const AttentionParams& p, const AttentionHead& h,
                                    float (&s)[Tiles][4], float factor, bool partial,
                                    const int (&limit)[2], int64_t query, int64_t first,
                                    SoftmaxRows& rows, float (&decay)[2]) {
  const int t = static_cast<int>(threadIdx.x % 4);
  const int end[2] = {limit[0] - 2 * t, limit[1] - 2 * t};
  const bool masked = (Array || Near) && attention_masked<Near>(p);
  float top[2] = {rows.max[0], rows.max[1]};
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i / 2, at = n * 8 + i % 2;
      float x = s[n][i] * factor;
      if (partial || masked) {
        if (at >= end[r])
          x = -INFINITY;
        else if (masked)
          x = masked_score<Near>(p, h, query + 8 * r, first + 2 * t + at, x);
      }
      s[n][i] = x;
      top[r] = fmaxf(top[r], x);  // a NaN never becomes the maximum, but stays a NaN weight
    }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
    const float shift = softmax_shift(top[r]);
    decay[r] = exp2_fast(rows.max[r] - shift);
    rows.max[r] = top[r];
    rows.sum[r] *= decay[r];
#pragma unroll
    for (int n = 0; n < Tiles; ++n)
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        s[n][i] = exp2_fast(s[n][i] - shift);
        rows.sum[r] += s[n][i];
      }
  }
}

template <int Tiles>
__device__ inline void scale_rows(float (&o)[Tiles][4], const float (&factors)[2]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= factors[i / 2];
}

// Weights as the a of products with values, 16 keys each.
template <class T, int Steps>
__device__ inline void pack_weights(const float (&s)[2 * Steps][4], uint32_t (&weights)[Steps][4]) {
#pragma unroll
  for (int n = 0; n < Steps; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &s[2 * n + i / 2][i % 2 * 2];
      weights[n][i] = pack_pair<T>(pair[0], pair[1]);
    }
}

// A warp's packed weights as rows (16, 16 Steps) of its own in shared memory, for it to read.
template <class T, int Steps>
__device__ inline void share_weights(const uint32_t (&weights)[Steps][4], T* own) {
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < Steps; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint32_t*>(own + (g + i % 2 * 8) * 16 * Steps + n * 16 + i / 2 * 8 +
                                   2 * t) = weights[n][i];
  __syncwarp();
}

// A warp's 16 rows of outputs from `first_row` of the block on, of which `rows` count; by way of
// their places in `tile`, which only this warp uses.
template <class Tile, class T>
__device__ inline void store_rows(const AttentionParams& p, const AttentionHead& h,
                                  const SoftmaxRows& softmax, const float (&o)[Tile::kDim / 8][4],
                                  int first_row, int rows, const HeadRows<T>& out, T* tile) {
  constexpr int kChunks = Tile::kDim / 8;
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + g + 8 * r;
    const bool none = softmax.sum[r] == 0.f;
    const float inverse = 1.f / softmax.sum[r];
#pragma unroll
    for (int n = 0; n < kChunks; ++n)
      *reinterpret_cast<uint32_t*>(tile + Tile::at(row, n) + 2 * t) =
          pack_pair<T>(none ? 0.f : o[n][2 * r] * inverse, none ? 0.f : o[n][2 * r + 1] * inverse);
    if (t == 0 && row < rows) store_lse(p, h, h.first_query + row, softmax.max[r], softmax.sum[r]);
  }
  __syncwarp();
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = first_row + i / kChunks, chunk = i % kChunks;
    if (row < rows && chunk * 8 < p.dim)
      store_chunk(p, h, out, h.first_query + row, chunk,
                  *reinterpret_cast<const uint4*>(tile + Tile::at(row, chunk)));
  }
}

}  // namespace pixleap
