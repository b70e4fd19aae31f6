// bfloat16 in place of CUDA's own header.
#pragma once

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/emulate/small_float.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {  // NOLINT: as in CUDA
    const auto u = std::bit_cast<uint32_t>(x);
    bits = x == x ? static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16) : 0x7fff;
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
PIXLEAP_SMALL_FLOAT(__nv_bfloat16)
PIXLEAP_SMALL_FLOAT_PAIR(__nv_bfloat16, __nv_bfloat162, bfloat16, __bfloat1622float2,
                         __floats2bfloat162_rn, __float22bfloat162_rn, __halves2bfloat162)

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
  return std::bit_cast<__nv_bfloat16>(x);
}
