// linear by Hopper's warpgroup products (sm_90a): out^T = W x^T. Weights are a, in registers: a
// packed word is a register of the fragment as it lies, or becomes two (int8). Rows of x are b, in
// shared memory as they lie. While the products of one block of K run, the fragments of the next
// are read and later ones come by cp.async.
#pragma once

#include "cuda/wgmma.h"
#include "ops/linear/cuda_epilogue.h"
#include "ops/linear/cuda_tile.h"

namespace pixleap {

// A block: Groups warpgroups with 64 features each, and Rows rows of x; Stages blocks of K in
// shared memory. Blocks: of a multiprocessor.
template <class T, class W, int Groups, int Rows, int Stages, int Blocks>
struct WgmmaLinear {
  using Type = T;
  static constexpr int kThreads = Groups * kWarpgroup, kFeatures = Groups * 64, kRows = Rows;
  static constexpr int kPanels = kFeatures / static_cast<int>(kLinearPanel);
  static constexpr int kStages = Stages, kBlocks = Blocks;
  static constexpr int kSteps = 4 / static_cast<int>(sizeof(W));  // of K in a packed word
  static constexpr int kWordRows = kLinearDepth / kSteps;
  static constexpr int kTileElements = kRows * kLinearDepth, kTileWords = kFeatures * kWordRows;
  static constexpr int kSumStride = kFeatures + 4;  // for stores of fragments without conflicts
  static constexpr size_t kTileBytes = Stages * (kTileElements * sizeof(T) + kTileWords * 4);
  static constexpr size_t kBytes = 1024 + kTileBytes;
  static_assert(kRows * kSumStride * 4 <= kTileBytes);
};

// Which row of x, and at which element it begins; b is -1 where there is none.
struct LinearRow {
  int64_t b, l, x;
};

#if defined(PIXLEAP_WGMMA)

// The two lowest bytes, integers, as a register of T: exactly, by their place in the mantissa of
// 2^23, without conversion instructions.
template <class T>
__device__ inline uint32_t pack_bytes(uint32_t bytes) {
  const auto number = [&](uint32_t byte) {
    const uint32_t bits = 0x4b000000u | ((byte & 255u) ^ 128u);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value - 8388736.f;  // 2^23 + 128
  };
  return pack_pair<T>(number(bytes), number(bytes >> 8));
}

// The weights of 64 steps of K as fragments. Row g of a is feature 2 g of the warp's panel, row
// g + 8 feature 2 g + 1: two words are one load.
template <class Shape>
__device__ inline void read_weights(const uint32_t* tile, uint32_t (&a)[kLinearDepth / 16][4]) {
  constexpr int kHalf = 8 / Shape::kSteps;  // words of eight steps of K
  const int lane = static_cast<int>(threadIdx.x % 32), panel = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4, row = Shape::kSteps == 2 ? t : t / 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t* const from =
        tile + packed_word(panel, Shape::kWordRows, half * kHalf + row, 2 * g);
#pragma unroll
    for (int step = 0; step < kLinearDepth / 16; ++step) {
      const uint2 words = *reinterpret_cast<const uint2*>(from + step * 2 * kHalf * 16);
      uint32_t* const to = &a[step][2 * half];
      if constexpr (Shape::kSteps == 2) {
        to[0] = words.x, to[1] = words.y;
      } else {
        to[0] = pack_bytes<typename Shape::Type>(words.x >> 16 * (t & 1));
        to[1] = pack_bytes<typename Shape::Type>(words.y >> 16 * (t & 1));
      }
    }
  }
}

// The epilogue: each thread has two features of every fourth row, and reads the residual of four
// rows before it writes to them.
template <class Shape, class Out>
__device__ inline void store_sums(const LinearParams& p, const float* tile, const LinearRow* rows,
                                  int64_t column) {
  struct alignas(2 * sizeof(Out)) Two {
    Out values[2];
  };
  constexpr int kPairs = Shape::kFeatures / 2, kStep = Shape::kThreads / kPairs, kBatch = 4;
  static_assert(Shape::kRows % (kStep * kBatch) == 0);
  const int of = static_cast<int>(threadIdx.x) % kPairs * 2;
  const int64_t n = column + of;
  if (n >= p.n) return;
  const int count = n + 1 < p.n ? 2 : 1;
  const auto aligned = [&](const void* data, const int64_t(&strides)[2]) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Two) == 0 &&
           ((strides[0] | strides[1]) & 1) == 0;
  };
  const bool out_pairs = count == 2 && aligned(p.out, p.out_strides);
  const bool residual_pairs = count == 2 && aligned(p.residual, p.residual_strides);
  float scale[2] = {1.f, 1.f}, bias[2] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (e >= count) break;
    if (p.scales) scale[e] = p.scales[n + e];
    if (p.bias) bias[e] = element_at(p.bias, p.bias_dtype, n + e);
  }
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) / kPairs; first < Shape::kRows;
       first += kStep * kBatch) {
    Two residual[kBatch] = {};
    if (p.residual) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const LinearRow& row = rows[first + i * kStep];
        if (row.b < 0) continue;
        const Out* from = static_cast<const Out*>(p.residual) + row.b * p.residual_strides[0] +
                          row.l * p.residual_strides[1] + n;
        if (residual_pairs)
          residual[i] = *reinterpret_cast<const Two*>(from);
        else
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (e < count) residual[i].values[e] = from[e];
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const LinearRow& row = rows[first + i * kStep];
      if (row.b < 0) continue;
      const float* sum = tile + (first + i * kStep) * Shape::kSumStride + of;
      Two y;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float value = linear_activation(p.activation, sum[e] * scale[e] + bias[e]);
        if (p.gate && e < count)
          value *= element_at(p.gate, p.gate_dtype, row.b * p.gate_stride + n + e);
        if (p.residual) value += to_accumulate(residual[i].values[e]);
        from_accumulate(value, y.values[e]);
      }
      Out* to = static_cast<Out*>(p.out) + row.b * p.out_strides[0] + row.l * p.out_strides[1] + n;
      if (out_pairs)
        *reinterpret_cast<Two*>(to) = y;
      else
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (e < count) to[e] = y.values[e];
    }
  }
}

template <class Shape>
__device__ void linear_by_wgmma(const LinearParams& p) {
  using T = typename Shape::Type;
  constexpr int kThreads = Shape::kThreads, kRows = Shape::kRows, kStages = Shape::kStages;
  constexpr int kSteps = Shape::kSteps, kDepth = kLinearDepth;
  __shared__ LinearRow rows[kRows];
  T* const x_tiles = reinterpret_cast<T*>(align_shared<1024>(dynamic_shared()));
  uint32_t* const w_tiles = reinterpret_cast<uint32_t*>(x_tiles + kStages * Shape::kTileElements);
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t row_blocks = (p.batch * p.length + kRows - 1) / kRows;
  const int64_t first = blockIdx.x % row_blocks * kRows;  // weights are read by neighbours
  const int64_t column = blockIdx.x / row_blocks * Shape::kFeatures;
  for (int i = tid; i < kRows; i += kThreads) {
    const int64_t row = first + i, b = row / p.length, l = row - b * p.length;
    rows[i] = {row < p.batch * p.length ? b : -1, l, b * p.x_strides[0] + l * p.x_strides[1]};
  }
  __syncthreads();

  const bool vectors =
      (reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.packed)) % 16 == 0 &&
      ((p.x_strides[0] | p.x_strides[1] | p.k) & 7) == 0;
  constexpr int kCopies = kRows * (kDepth / 8) / kThreads;
  static_assert(kCopies * kThreads == kRows * (kDepth / 8));
  constexpr int kRowStep = kThreads / 8;
  static_assert(kRowStep % 8 == 0);  // rows of one swizzle
  const int x_row = tid / (kDepth / 8), chunk = tid % (kDepth / 8);
  const int x_to = row_chunk(x_row, chunk);
  const auto load_x = [&](int64_t k, T* tile) {
    const int64_t at = k + chunk * 8;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const LinearRow& row = rows[x_row + i * kRowStep];
      const bool inside = row.b >= 0 && at < p.k;
      const T* const from = static_cast<const T*>(p.x) + (inside ? row.x + at : 0);
      T* const to = tile + x_to + i * kRowStep * kDepth;
      if (vectors) {
        cp_async_16(to, from, inside);
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < 8; ++e)
        from_accumulate(inside && at + e < p.k ? to_accumulate(from[e]) : 0.f, to[e]);
    }
  };

  constexpr int kChunks = Shape::kWordRows * 4, kPanelStep = kThreads / kChunks;
  const int64_t words = (p.k + kSteps - 1) / kSteps;
  const int panels =
      static_cast<int>(min((p.n + 15) / 16 - column / 16, static_cast<int64_t>(Shape::kPanels))) -
      tid / kChunks;
  const int w_row = tid % kChunks / 4, n = tid % 4 * 4;
  const uint32_t* const w_from = static_cast<const uint32_t*>(p.packed) +
                                 ((column / 16 + tid / kChunks) * words + w_row) * 16 + n;
  const int w_to = packed_word(tid / kChunks, Shape::kWordRows, w_row, n);
  const auto load_weights = [&](int64_t k, uint32_t* tile) {
    const int64_t row = k / kSteps;
#pragma unroll
    for (int panel = 0; panel < Shape::kPanels; panel += kPanelStep) {
      const bool inside = panel < panels && row + w_row < words;
      const uint32_t* from = w_from + (panel * words + row) * 16;
      uint32_t* const to = tile + w_to + panel * Shape::kWordRows * 16;
      if (vectors) {
        cp_async_16(to, inside ? from : p.packed, inside);
        continue;
      }
#pragma unroll 1
      for (int e = 0; e < 4; ++e) to[e] = inside ? from[e] : 0u;
    }
  };
  const int blocks = static_cast<int>((p.k + kDepth - 1) / kDepth);
  const auto load = [&](int i, int stage) {
    if (i < blocks) {
      load_x(int64_t{i} * kDepth, x_tiles + stage * Shape::kTileElements);
      load_weights(int64_t{i} * kDepth, w_tiles + stage * Shape::kTileWords);
    }
    cp_async_commit();
  };

  float sums[kRows / 8][4] = {};
  uint32_t a[kDepth / 16][4], next[kDepth / 16][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(i, i);
  if (blocks > 0) {
    cp_async_wait<kStages - 2>();
    fence_proxy_async();
    __syncthreads();
    read_weights<Shape>(w_tiles, a);
  }
#pragma unroll 1
  for (int i = 0, stage = 0; i < blocks; ++i) {
    const uint64_t b =
        wgmma_descriptor(x_tiles + stage * Shape::kTileElements, 16, 1024, WgmmaSwizzle::bytes128);
    wgmma_hold(sums);
    wgmma_hold(a);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step)
      wgmma_rs<T, false>(sums, a[step], wgmma_advance(b, step * 32), true);
    wgmma_commit();
    cp_async_wait<kStages - 3>();
    fence_proxy_async();
    __syncthreads();  // block i + 1 is there, and all have waited for the products of i - 1
    load(i - 1 + kStages, stage ? stage - 1 : kStages - 1);  // in their place
    stage = stage + 1 < kStages ? stage + 1 : 0;
    if (i + 1 < blocks) read_weights<Shape>(w_tiles + stage * Shape::kTileWords, next);
    wgmma_hold(next);
    wgmma_wait<0>();
    wgmma_hold(sums);
    wgmma_hold(a);
    memcpy(a, next, sizeof a);
  }

  // Sums change hands in the place of the tiles, once no products read them: rows are written along
  // their features.
  float* const tile = reinterpret_cast<float*>(x_tiles);
  const int lane = tid % 32, g = lane / 4, t = lane % 4;
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kRows / 8; ++m)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      *reinterpret_cast<float2*>(tile + (m * 8 + 2 * t + e) * Shape::kSumStride + tid / 32 * 16 +
                                 2 * g) = make_float2(sums[m][e], sums[m][2 + e]);
  __syncthreads();
  switch (p.out_dtype) {
    case DType::bf16:
      return store_sums<Shape, __nv_bfloat16>(p, tile, rows, column);
    case DType::f16:
      return store_sums<Shape, __half>(p, tile, rows, column);
    default:
      return store_sums<Shape, float>(p, tile, rows, column);
  }
}

#endif

}  // namespace pixleap
