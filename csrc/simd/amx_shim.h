// AMX tile operations by tile number: intrinsics, or, with PIXLEAP_EMULATE_ISA, plain loops with
// the same results, so that the logic of AMX kernels is tested on machines without AMX.
//   tile_configure(): tiles 0 to 7, of 16 rows of 64 bytes
//   tile_zero(t), tile_load(t, pointer, stride in bytes), tile_store(t, pointer, stride in bytes)
//   tile_multiply_bf16(c, a, b): c += a b, float32 sums of bfloat16 pairs
//   tile_release()
// Tile numbers are literals.
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

#if !defined(PIXLEAP_EMULATE_ISA)

// GCC 12's own forms of the first two do not say that they read memory (8 bytes of it): what was
// stored for them could be moved behind them or dropped.
PIXLEAP_INLINE void tile_configure() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg\t%0" ::"m"(config));
}
#define tile_load(t, pointer, stride)                                                         \
  __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" #t ::"r"(static_cast<const void*>(pointer)), \
                   "r"(static_cast<int64_t>(stride))                                          \
                   : "memory")
#define tile_release() _tile_release()
#define tile_zero(t) _tile_zero(t)
#define tile_store(t, pointer, stride) _tile_stored(t, pointer, stride)
#define tile_multiply_bf16(c, a, b) _tile_dpbf16ps(c, a, b)

#else

struct EmulatedTile {
  alignas(64) unsigned char bytes[16][64];
};
thread_local EmulatedTile emulated_tiles[8];
thread_local bool tiles_configured = false;

// As in hardware, an instruction on tiles that were not configured is an error.
inline EmulatedTile& emulated_tile(int t) {
  if (!tiles_configured) __builtin_trap();
  return emulated_tiles[t];
}
inline void tile_configure() {
  tiles_configured = true;
  std::memset(emulated_tiles, 0, sizeof emulated_tiles);
}
inline void tile_release() { tiles_configured = false; }
inline void tile_zero(int t) { std::memset(&emulated_tile(t), 0, sizeof(EmulatedTile)); }
inline void tile_load(int t, const void* pointer, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(emulated_tile(t).bytes[row], static_cast<const char*>(pointer) + row * stride, 64);
}
inline void tile_store(int t, void* pointer, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(pointer) + row * stride, emulated_tile(t).bytes[row], 64);
}
// In the order of the instruction's description: the even and the odd elements of the pairs are
// summed apart over the 32 steps, then together, then added to c.
inline void tile_multiply_bf16(int c, int a, int b) {
  float sums[16][16];
  bf16_t left[16][32], right[16][32];
  std::memcpy(sums, &emulated_tile(c), sizeof sums);
  std::memcpy(left, &emulated_tile(a), sizeof left);
  std::memcpy(right, &emulated_tile(b), sizeof right);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float pair[2] = {0.f, 0.f};
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 2; ++j)
          pair[j] = __builtin_fmaf(to_float(left[row][2 * k + j]),
                                   to_float(right[k][2 * column + j]), pair[j]);
      sums[row][column] += pair[0] + pair[1];
    }
  }
  std::memcpy(&emulated_tile(c), sums, sizeof sums);
}

#endif

}  // namespace
}  // namespace pixleap
