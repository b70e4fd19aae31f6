// bfloat16 and int8 weights on AMX. Panels of bfloat16 are tile operands as they lie, int8 is
// expanded to them (exactly). x is rounded to bfloat16.
#include "ops/linear/blocks.inl"
#include "simd/amx_shim.h"
#include "simd/gemm.h"

namespace pixleap {
namespace {

constexpr int64_t kTileDepth = 32;  // steps of k per tile
constexpr int64_t kTileRows = 16;

struct AmxTile {
  using Element = bf16_t;
  static constexpr int64_t kRows = 64;
  static constexpr int64_t kRowMultiple = 2 * kTileRows;
  static constexpr int64_t kDepthMultiple = kTileDepth;
  static constexpr int64_t kDepth = 512;  // two panels of it take 32 KiB of the L1 cache
  static constexpr int64_t kStride = kDepth + 32;
  static void multiply(const LinearParams& p, const Group& g, const bf16_t* block, int64_t k,
                       int64_t depth, float* sums);
};

constexpr int64_t kBlockBytes = AmxTile::kStride * 2;
constexpr int64_t kSumBytes = kGroupColumns * 4;

struct Operands {
  const bf16_t* x;             // rows of the block
  const bf16_t* panel[2];      // at this depth
  const bf16_t* last_tile[2];  // of the panels, where they end within a tile
  int64_t whole, tiles;        // tiles over the depth: whole ones, and all
};

// Sums of 16 R rows times P panels.
template <int R, int P>
void multiply_tiles(const Operands& o, float* sums, bool first) {
  float* lower = sums + kTileRows * kGroupColumns;
  if (first) {
    tile_zero(0);
    if constexpr (P > 1) tile_zero(1);
    if constexpr (R > 1) tile_zero(2);
    if constexpr (R > 1 && P > 1) tile_zero(3);
  } else {
    tile_load(0, sums, kSumBytes);
    if constexpr (P > 1) tile_load(1, sums + kLinearPanel, kSumBytes);
    if constexpr (R > 1) tile_load(2, lower, kSumBytes);
    if constexpr (R > 1 && P > 1) tile_load(3, lower + kLinearPanel, kSumBytes);
  }
  for (int64_t i = 0; i < o.tiles; ++i) {
    const bf16_t* x = o.x + i * kTileDepth;
    const int64_t at = i * kTileDepth * kLinearPanel;
    tile_load(4, x, kBlockBytes);
    tile_load(6, i < o.whole ? o.panel[0] + at : o.last_tile[0], 64);
    tile_multiply_bf16(0, 4, 6);
    if constexpr (P > 1) {
      tile_load(7, i < o.whole ? o.panel[1] + at : o.last_tile[1], 64);
      tile_multiply_bf16(1, 4, 7);
    }
    if constexpr (R > 1) {
      tile_load(5, x + kTileRows * AmxTile::kStride, kBlockBytes);
      tile_multiply_bf16(2, 5, 6);
      if constexpr (P > 1) tile_multiply_bf16(3, 5, 7);
    }
  }
  tile_store(0, sums, kSumBytes);
  if constexpr (P > 1) tile_store(1, sums + kLinearPanel, kSumBytes);
  if constexpr (R > 1) tile_store(2, lower, kSumBytes);
  if constexpr (R > 1 && P > 1) tile_store(3, lower + kLinearPanel, kSumBytes);
}

// int8 fours of one panel as bfloat16 pairs, `depth` steps of k, with zeros to the end of the tile.
void expand(const int8_t* packed, int64_t depth, bf16_t* to) {
  int64_t k = 0;
  for (; k < depth; k += 4) {
    vu four;
    std::memcpy(&four, packed + k * kLinearPanel, sizeof four);
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      // Integers below 256 leave the low half of a float32 empty.
      const vu pair =
          bit_cast_to<vu>(signed_byte(four, j)) >> 16 | bit_cast_to<vu>(signed_byte(four, j + 1));
      std::memcpy(to + (k + j) * kLinearPanel, &pair, sizeof pair);
    }
  }
  const int64_t end = (k + kTileDepth - 1) / kTileDepth * kTileDepth;
  std::memset(to + k * kLinearPanel, 0,
              static_cast<size_t>((end - k) * kLinearPanel) * sizeof(bf16_t));
}

void AmxTile::multiply(const LinearParams& p, const Group& g, const bf16_t* block, int64_t k,
                       int64_t depth, float* sums) {
  const int64_t padded = (depth + 1) / 2 * 2;
  const int64_t panel_stride = linear_padded_depth(p.packed_dtype, p.k) * kLinearPanel;
  const int64_t at = g.panel * panel_stride + k * kLinearPanel;
  alignas(64) bf16_t expanded[2][kDepth * kLinearPanel];
  alignas(64) bf16_t last[2][kTileDepth * kLinearPanel];
  Operands o{};
  o.whole = padded / kTileDepth;
  o.tiles = (padded + kTileDepth - 1) / kTileDepth;
  const int64_t tail = padded % kTileDepth * kLinearPanel;
  const bool first = k == 0;
  tile_configure();
  for (int64_t panel = 0; panel < g.panels; panel += 2) {
    const bool two = panel + 1 < g.panels;
    for (int64_t i = 0; i < (two ? 2 : 1); ++i) {
      const int64_t from = at + (panel + i) * panel_stride;
      o.last_tile[i] = last[i];
      if (p.packed_dtype == DType::i8) {
        expand(static_cast<const int8_t*>(p.packed) + from, depth, expanded[i]);
        o.panel[i] = expanded[i];
      } else {
        o.panel[i] = static_cast<const bf16_t*>(p.packed) + from;
      }
      if (!tail) continue;
      std::memset(last[i], 0, sizeof last[i]);
      std::memcpy(last[i], o.panel[i] + o.whole * kTileDepth * kLinearPanel,
                  static_cast<size_t>(tail) * sizeof(bf16_t));
    }
    for (int64_t row = 0; row < g.rows; row += 2 * kTileRows) {
      o.x = block + row * AmxTile::kStride;
      float* to = sums + row * kGroupColumns + panel * kLinearPanel;
      if (g.rows - row > kTileRows)
        two ? multiply_tiles<2, 2>(o, to, first) : multiply_tiles<2, 1>(o, to, first);
      else
        two ? multiply_tiles<1, 2>(o, to, first) : multiply_tiles<1, 1>(o, to, first);
    }
  }
  tile_release();
}

}  // namespace

void linear_amx(const LinearParams& p) {
  if (p.packed_dtype == DType::f32)
    linear_avx512(p);
  else
    run_blocks<AmxTile>(p);
}

}  // namespace pixleap
