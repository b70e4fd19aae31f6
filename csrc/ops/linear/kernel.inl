#include <array>
#include <utility>

#include "ops/linear/blocks.inl"
#include "simd/gemm.h"

namespace pixleap {
namespace {

static_assert(kLinearPanel == kGemmPanel);
constexpr int kMaxRows = kGemmMaxRows;
constexpr int kMaxPanelsLog2 = 3;

// Panels side by side for a number of rows (log2): enough sums to hide the latency of the FMA.
constexpr int panels_log2(int rows) {
  int i = kMaxPanelsLog2;
  while (i > 0 && rows * kPanelVectors << i > kGemmSums) --i;
  return i;
}

// The same where there are many rows.
constexpr int kWidePanelsLog2 = VW == 16 ? 1 : 0;

struct VectorTile {
  using Element = float;
  static constexpr int64_t kRows = VW == 16 ? 112 : 96;
  static constexpr int64_t kRowMultiple = 1;
  static constexpr int64_t kDepthMultiple = 4;
  static constexpr int64_t kDepth = 512;  // a panel of it takes 32 KiB
  static constexpr int64_t kStride = kDepth + 16;
  static void multiply(const LinearParams& p, const Group& g, const float* block, int64_t k,
                       int64_t depth, float* sums);
};

template <class W, int R, int Log2>
constexpr GemmMicro micro_or_null() {
  if constexpr (Log2 <= panels_log2(R))
    return gemm_micro<W, R, 1 << Log2, VectorTile::kStride, kGroupColumns>;
  return nullptr;
}
template <class W, int... R>
constexpr auto micro_table(std::integer_sequence<int, R...>) {
  return std::array<std::array<GemmMicro, kMaxPanelsLog2 + 1>, sizeof...(R)>{
      {{micro_or_null<W, R + 1, 0>(), micro_or_null<W, R + 1, 1>(), micro_or_null<W, R + 1, 2>(),
        micro_or_null<W, R + 1, 3>()}...}};
}
template <class W>
constexpr auto kMicro = micro_table<W>(std::make_integer_sequence<int, kMaxRows>{});

// bfloat16 pairs of one panel as float32, `depth` (even) steps of k.
void expand(const bf16_t* packed, int64_t depth, float* to) {
  for (int64_t i = 0; i < depth / 2 * kLinearPanel; i += VW) {
    vu pair;
    std::memcpy(&pair, packed + 2 * i, sizeof pair);
    float* even = to + i / kLinearPanel * 2 * kLinearPanel + i % kLinearPanel;
    store(even, bit_cast_to<vf>(pair << 16));
    store(even + kLinearPanel, bit_cast_to<vf>(pair & 0xffff0000u));
  }
}

// The same of int8 fours; `depth` is a multiple of four.
void expand(const int8_t* packed, int64_t depth, float* to) {
  for (int64_t i = 0; i < depth / 4 * kLinearPanel; i += VW) {
    vu four;
    std::memcpy(&four, packed + 4 * i, sizeof four);
    float* first = to + i / kLinearPanel * 4 * kLinearPanel + i % kLinearPanel;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(first + j * kLinearPanel, signed_byte(four, j));
  }
}

// From this many row blocks on, short weights are expanded once for all of them.
constexpr int64_t kExpandBlocks = 3;

template <class W>
void multiply_panels(const LinearParams& p, const Group& g, const float* block, int64_t k,
                     int64_t depth, float* sums) {
  constexpr bool kShort = sizeof(W) < 4;
  constexpr int64_t kSteps = 4 / sizeof(W);
  const int64_t panel_stride = linear_padded_depth(p.packed_dtype, p.k) * kLinearPanel;
  const W* packed = static_cast<const W*>(p.packed) + g.panel * panel_stride + k * kLinearPanel;
  depth = (depth + kSteps - 1) / kSteps * kSteps;
  // Row blocks of equal size, but for one row.
  const int64_t blocks = (g.rows + kMaxRows - 1) / kMaxRows;
  int log2 = panels_log2(static_cast<int>((g.rows + blocks - 1) / blocks));
  alignas(64) float expanded[kShort ? (VectorTile::kDepth * kLinearPanel) << kWidePanelsLog2 : 1];
  const bool expands = kShort && blocks >= kExpandBlocks;
  if (expands && log2 > kWidePanelsLog2) log2 = kWidePanelsLog2;
  for (int64_t panel = 0; panel < g.panels; panel += int64_t{1} << log2) {
    while (panel + (int64_t{1} << log2) > g.panels) --log2;
    const void* weights = packed + panel * panel_stride;
    int64_t stride = panel_stride;
    if constexpr (kShort) {
      if (expands) {
        stride = VectorTile::kDepth * kLinearPanel;
        for (int64_t i = 0; i < int64_t{1} << log2; ++i)
          expand(packed + (panel + i) * panel_stride, depth, expanded + i * stride);
        weights = expanded;
      }
    }
    const auto& kernels = expands ? kMicro<float> : kMicro<W>;
    // One panel at a time is one stream from memory, which hardware alone does not keep full: all
    // row blocks together fetch the next panel, or the first one of the next depth.
    const W* next = nullptr;
    if (log2 == 0)
      next = panel + 1 < g.panels           ? packed + (panel + 1) * panel_stride
             : k + VectorTile::kDepth < p.k ? packed + VectorTile::kDepth * kLinearPanel
                                            : nullptr;
    const int64_t line = kLinearPanel * int64_t{sizeof(W)};  // bytes of a step of k
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = g.rows * i / blocks, end = g.rows * (i + 1) / blocks;
      Ahead ahead;
      if (next)
        ahead = {reinterpret_cast<const char*>(next) + depth * line * i / blocks, line / blocks};
      kernels[static_cast<size_t>(end - row - 1)][static_cast<size_t>(log2)](
          block + row * VectorTile::kStride, weights, stride, depth,
          sums + row * kGroupColumns + panel * kLinearPanel, k == 0, ahead);
    }
  }
}

void VectorTile::multiply(const LinearParams& p, const Group& g, const float* block, int64_t k,
                          int64_t depth, float* sums) {
  switch (p.packed_dtype) {
    case DType::f32:
      return multiply_panels<float>(p, g, block, k, depth, sums);
    case DType::bf16:
      return multiply_panels<bf16_t>(p, g, block, k, depth, sums);
    default:
      return multiply_panels<int8_t>(p, g, block, k, depth, sums);
  }
}

}  // namespace

void PIXLEAP_KERNEL(linear)(const LinearParams& p) { run_blocks<VectorTile>(p); }

}  // namespace pixleap
