#include "ops/linear/cuda_wgmma.h"

namespace pixleap {
namespace {

// Sums run over K in order within one warp or thread, whatever the number of rows: a row has the
// same bits alone and among others.

// ---- Tensor cores: x bfloat16 or float16; of Hopper: cuda_wgmma.h ----

constexpr int kThreads = 128, kColumns = 64, kDepth = kLinearDepth;
constexpr int kPanels = kColumns / static_cast<int>(kLinearPanel);

// Warps side by side over rows and columns; 16 x 8 products of one of them.
template <int WarpsDown, int Tiles, int Columns>
struct Grid {
  static constexpr int kTiles = Tiles, kRows = WarpsDown * Tiles * 16;
  static constexpr int kAcross = 4 / WarpsDown, kColumnTiles = Columns;
  static_assert(kAcross * Columns * 8 == kColumns);
  static constexpr size_t kBytes = 2 * size_t{kRows + kColumns} * kDepth * 2;  // double-buffered
};
using Tall = Grid<2, 2, 4>;
using Flat = Grid<1, 1, 2>;

// Word of two steps of k of feature n in a panel of the tile.
__device__ inline int pair_word(int panel, int k2, int n) {
  return packed_word(panel, kDepth / 2, k2, n);
}

template <class T, int Rows>
__device__ void load_x(const LinearParams& p, int64_t first, int64_t k, bool vectors, T* tile) {
  const T* x = static_cast<const T*>(p.x);
  for (int i = static_cast<int>(threadIdx.x); i < Rows * kDepth / 8; i += kThreads) {
    const int row = i / (kDepth / 8), chunk = i % (kDepth / 8);
    const bool inside = first + row < p.batch * p.length && k + chunk * 8 < p.k;
    const int64_t b = inside ? (first + row) / p.length : 0;
    const int64_t l = inside ? first + row - b * p.length : 0;
    const T* from = x + (inside ? b * p.x_strides[0] + l * p.x_strides[1] + k + chunk * 8 : 0);
    T* to = tile + row_chunk(row, chunk);
    if (vectors) {
      cp_async_16(to, from, inside);
    } else {
      for (int e = 0; e < 8; ++e) {
        float value = 0.f;
        if (inside && k + chunk * 8 + e < p.k) value = to_accumulate(from[e]);
        from_accumulate(value, to[e]);
      }
    }
  }
}

template <class T, class W>
__device__ void load_weights(const LinearParams& p, int64_t column, int64_t k, bool vectors,
                             uint32_t* tile) {
  constexpr int64_t kSteps = 4 / sizeof(W);
  const int64_t words = (p.k + kSteps - 1) / kSteps, panels = (p.n + 15) / 16;
  const uint32_t* packed = static_cast<const uint32_t*>(p.packed);
  if constexpr (sizeof(W) == 2) {
    for (int i = static_cast<int>(threadIdx.x); i < kPanels * kDepth / 2 * 4; i += kThreads) {
      const int panel = i / (kDepth * 2), k2 = i / 4 % (kDepth / 2), n = i % 4 * 4;
      const bool inside = column / 16 + panel < panels && k / 2 + k2 < words;
      const uint32_t* from =
          packed + (inside ? ((column / 16 + panel) * words + k / 2 + k2) * 16 + n : 0);
      uint32_t* to = tile + pair_word(panel, k2, n);
      if (vectors)
        cp_async_16(to, from, inside);
      else
        for (int e = 0; e < 4; ++e) to[e] = inside ? from[e] : 0u;
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < kPanels * kDepth / 4 * 16; i += kThreads) {
      const int panel = i / (kDepth * 4), k4 = i / 16 % (kDepth / 4), n = i % 16;
      const bool inside = column / 16 + panel < panels && k / 4 + k4 < words;
      const uint32_t four =
          inside ? packed[((column / 16 + panel) * words + k / 4 + k4) * 16 + n] : 0u;
      const auto number = [&](int e) {
        return static_cast<float>(static_cast<int8_t>(four >> 8 * e & 255u));
      };
      tile[pair_word(panel, 2 * k4, n)] = pack_pair<T>(number(0), number(1));
      tile[pair_word(panel, 2 * k4 + 1, n)] = pack_pair<T>(number(2), number(3));
    }
  }
}

template <class T, class W, class G>
__global__ void __launch_bounds__(kThreads) linear_mma(const __grid_constant__ LinearParams p) {
  T* const x_tiles = reinterpret_cast<T*>(dynamic_shared());
  uint32_t* const w_tiles = reinterpret_cast<uint32_t*>(x_tiles + 2 * G::kRows * kDepth);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, t = lane % 4;
  const int row0 = warp / G::kAcross * G::kTiles * 16;
  const int column0 = warp % G::kAcross * G::kColumnTiles * 8;
  const int64_t row_blocks = (p.batch * p.length + G::kRows - 1) / G::kRows;
  const int64_t first = blockIdx.x % row_blocks * G::kRows;  // weights are read by neighbours
  const int64_t column = blockIdx.x / row_blocks * kColumns;
  const bool x_vectors = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
                         ((p.x_strides[0] | p.x_strides[1] | p.k) & 7) == 0;
  const bool w_vectors = reinterpret_cast<uintptr_t>(p.packed) % 16 == 0;
  const auto load = [&](int64_t k, int buffer) {
    load_x<T, G::kRows>(p, first, k, x_vectors, x_tiles + buffer * G::kRows * kDepth);
    load_weights<T, W>(p, column, k, w_vectors, w_tiles + buffer * kColumns * kDepth / 2);
    cp_async_commit();
  };
  float sums[G::kTiles][G::kColumnTiles][4] = {};
  if (p.k > 0) load(0, 0);
  int buffer = 0;
  for (int64_t k = 0; k < p.k; k += kDepth, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this block of k is there, the last one is used
    if (k + kDepth < p.k) load(k + kDepth, buffer ^ 1);
    const T* x = x_tiles + buffer * G::kRows * kDepth;
    const uint32_t* w = w_tiles + buffer * kColumns * kDepth / 2;
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t a[G::kTiles][4];
#pragma unroll
      for (int m = 0; m < G::kTiles; ++m)
        ldmatrix_x4(a[m], x + row_chunk(row0 + m * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
      for (int c = 0; c < G::kColumnTiles; ++c) {
        const int n = column0 + c * 8 + g;
        const uint32_t b[2] = {w[pair_word(n / 16, step * 8 + t, n % 16)],
                               w[pair_word(n / 16, step * 8 + t + 4, n % 16)]};
#pragma unroll
        for (int m = 0; m < G::kTiles; ++m) mma_m16n8k16<T>(sums[m][c], a[m], b);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < G::kTiles; ++m)
#pragma unroll
    for (int c = 0; c < G::kColumnTiles; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first + row0 + m * 16 + g + i / 2 * 8;
        const int64_t n = column + column0 + c * 8 + 2 * t + i % 2;
        if (row < p.batch * p.length && n < p.n) store_linear(p, row, n, sums[m][c][i]);
      }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    linear_wgmma(const __grid_constant__ LinearParams p) {
#if defined(PIXLEAP_WGMMA)
  linear_by_wgmma<Shape>(p);
#endif
}

// ---- float32 products, any types ----
// steps: of k that lie side by side in the packed weights.

constexpr int kSimtThreads = 256, kSimtRows = 64, kSimtDepth = 16;

__global__ void __launch_bounds__(kSimtThreads)
    linear_simt(const __grid_constant__ LinearParams p, const int64_t steps) {
  __shared__ float x_tile[kSimtDepth][kSimtRows + 4];
  __shared__ float w_tile[kSimtDepth][kColumns + 4];
  const int tid = static_cast<int>(threadIdx.x), down = tid / 16 * 4, across = tid % 16 * 4;
  const int64_t rows = p.batch * p.length, row_blocks = (rows + kSimtRows - 1) / kSimtRows;
  const int64_t first = blockIdx.x % row_blocks * kSimtRows;
  const int64_t column = blockIdx.x / row_blocks * kColumns;
  const int64_t words = (p.k + steps - 1) / steps;
  float sums[4][4] = {};
  for (int64_t k = 0; k < p.k; k += kSimtDepth) {
    __syncthreads();
    for (int i = tid; i < kSimtDepth * kSimtRows; i += kSimtThreads) {
      const int64_t row = first + i / kSimtDepth, of = k + i % kSimtDepth;
      float value = 0.f;
      if (row < rows && of < p.k) {
        const int64_t b = row / p.length, l = row - b * p.length;
        value = element_at(p.x, p.x_dtype, b * p.x_strides[0] + l * p.x_strides[1] + of);
      }
      x_tile[i % kSimtDepth][i / kSimtDepth] = value;
    }
    for (int i = tid; i < kSimtDepth * kColumns; i += kSimtThreads) {
      const int64_t n = column + i % kColumns, of = k + i / kColumns;
      float value = 0.f;
      if (n < p.n && of < p.k)
        value = element_at(p.packed, p.packed_dtype,
                           ((n / 16 * words + of / steps) * 16 + n % 16) * steps + of % steps);
      w_tile[i / kColumns][i % kColumns] = value;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kSimtDepth; ++d)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          sums[r][c] = fmaf(x_tile[d][down + r], w_tile[d][across + c], sums[r][c]);
  }
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (first + down + r < rows && column + across + c < p.n)
        store_linear(p, first + down + r, column + across + c, sums[r][c]);
}

LaunchShape shape_of(const LinearParams& p, int rows, int columns, int threads, size_t bytes) {
  const int64_t blocks = (p.batch * p.length + rows - 1) / rows * ((p.n + columns - 1) / columns);
  return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), bytes};
}

// Which shape of block a call takes, its rows decide; its bits are the same in each.
template <class T, class W>
void run_mma(const LinearParams& p, const Device& device) {
  const auto by_mma = [&]<class G>() {
    launch(linear_mma<T, W, G>, shape_of(p, G::kRows, kColumns, kThreads, G::kBytes), device, p);
  };
  if (p.batch * p.length <= Flat::kRows)
    by_mma.template operator()<Flat>();
  else
    by_mma.template operator()<Tall>();
}

template <class T, class W>
void run_wgmma(const LinearParams& p, const Device& device) {
  using Few = WgmmaLinear<T, W, 1, 16, 8, 2>;
  using Some = WgmmaLinear<T, W, 1, 64, 4, 3>;
  using Many = WgmmaLinear<T, W, 2, 128, 3, 2>;
  constexpr unsigned kEnough = 128;  // blocks: about one for each multiprocessor
  const auto shape = [&]<class S>() {
    return shape_of(p, S::kRows, S::kFeatures, S::kThreads, S::kBytes);
  };
  const auto by_wgmma = [&]<class S>() {
    launch(linear_wgmma<S>, shape.template operator()<S>(), device, p);
  };
  if (p.batch * p.length <= Few::kRows)
    by_wgmma.template operator()<Few>();
  else if (shape.template operator()<Many>().grid.x < kEnough)
    by_wgmma.template operator()<Some>();
  else
    by_wgmma.template operator()<Many>();
}

template <class T, class W>
void run_tensor_cores(const LinearParams& p, const Device& device) {
  return runs_wgmma(device) ? run_wgmma<T, W>(p, device) : run_mma<T, W>(p, device);
}

}  // namespace

void linear_cuda(const LinearParams& p, const Device& device) {
  if (p.x_dtype == DType::bf16 && p.packed_dtype == DType::bf16)
    return run_tensor_cores<__nv_bfloat16, __nv_bfloat16>(p, device);
  if (p.x_dtype == DType::bf16 && p.packed_dtype == DType::i8)
    return run_tensor_cores<__nv_bfloat16, int8_t>(p, device);
  if (p.x_dtype == DType::f16 && p.packed_dtype == DType::i8)
    return run_tensor_cores<__half, int8_t>(p, device);
  launch(linear_simt, shape_of(p, kSimtRows, kColumns, kSimtThreads, 0), device, p,
         linear_steps(p.packed_dtype));
}

}  // namespace pixleap
