// The float32 micro-kernel of matrix products: a few rows times panels of 16 columns, the sums in
// registers over all of the depth.
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kGemmPanel = 16;                                // columns of a panel
constexpr int kPanelVectors = static_cast<int>(kGemmPanel) / VW;  // per row of a panel
// Sums held in registers; the rest holds the weights and one number of x.
constexpr int kGemmSums = VW == 16 ? 28 : 12;
constexpr int kGemmMaxRows = VW == 16 ? 14 : VW == 8 ? 6 : 3;

// Byte j (0 to 3) of every 32-bit lane, a signed number, as float32.
PIXLEAP_INLINE vf signed_byte(vu lanes, int j) {
  return __builtin_convertvector(bit_cast_to<vi>(lanes << (24 - 8 * j)) >> 24, vf);
}

// What a micro-kernel fetches into the cache meanwhile, `step` bytes per step of k; nothing if 0.
struct Ahead {
  const char* from = nullptr;
  int64_t step = 0;
};

using GemmMicro = void (*)(const float* x, const void* packed, int64_t panel_stride, int64_t depth,
                           float* sums, bool first, Ahead ahead);

// Sums of R rows (of stride XStride) times P panels over `depth` steps of k; adds to `sums` unless
// `first`. panel_stride is in elements. W: float, panels (k, 16); bf16_t: pairs along k,
// (k / 2, 16, 2), with an even depth; int8_t: fours along k, (k / 4, 16, 4), with a depth of fours.
template <class W, int R, int P, int64_t XStride, int64_t SumStride>
void gemm_micro(const float* x, const void* packed, int64_t panel_stride, int64_t depth,
                float* sums, bool first, Ahead ahead) {
  constexpr int V = P * kPanelVectors;
  vf c[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) c[r][v] = first ? vf{} : load(sums + r * SumStride + v * VW);
  const auto step = [&](const vf* w, int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vf a = splat(x[r * XStride + k]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) c[r][v] = fma(a, w[v], c[r][v]);
    }
  };
  if constexpr (sizeof(W) == 4) {
    const float* w = static_cast<const float*>(packed);
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from += ahead.step;
      vf b[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v)
        b[v] = load(w + v / kPanelVectors * panel_stride + k * kGemmPanel + v % kPanelVectors * VW);
      step(b, k);
    }
  } else {
    // Several steps of k in each 32-bit lane, the first in the lowest bits.
    constexpr int64_t kSteps = 4 / sizeof(W);
    const uint32_t* w = static_cast<const uint32_t*>(packed);
    const auto lanes = [&](int v, int64_t k) __attribute__((always_inline)) {
      vu u;
      std::memcpy(&u,
                  w + v / kPanelVectors * (panel_stride / kSteps) + k / kSteps * kGemmPanel +
                      v % kPanelVectors * VW,
                  sizeof u);
      return u;
    };
    for (int64_t k = 0; k < depth; k += kSteps) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from += ahead.step * kSteps;
      vf b[V];  // loaded once per step, since the registers are full
      if constexpr (sizeof(W) == 2) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) b[v] = bit_cast_to<vf>(lanes(v, k) << 16);
        step(b, k);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) b[v] = bit_cast_to<vf>(lanes(v, k) & 0xffff0000u);
        step(b, k + 1);
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < kSteps; ++j) {
#pragma GCC unroll 16
          for (int v = 0; v < V; ++v) b[v] = signed_byte(lanes(v, k), j);
          step(b, k + j);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(sums + r * SumStride + v * VW, c[r][v]);
}

}  // namespace
}  // namespace pixleap
