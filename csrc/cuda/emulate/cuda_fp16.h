// float16 in place of CUDA's own header.
#pragma once

#include "cuda/emulate/cuda_runtime.h"
#include "cuda/emulate/small_float.h"

struct __half {
  _Float16 value;
  __half() = default;
  __half(float x) : value(static_cast<_Float16>(x)) {}  // NOLINT: as in CUDA
  operator float() const { return static_cast<float>(value); }
};
using half = __half;
PIXLEAP_SMALL_FLOAT(__half)
PIXLEAP_SMALL_FLOAT_PAIR(__half, __half2, half, __half22float2, __floats2half2_rn,
                         __float22half2_rn, __halves2half2)
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return std::bit_cast<unsigned short>(x); }
inline __half __ushort_as_half(unsigned short x) { return std::bit_cast<__half>(x); }
