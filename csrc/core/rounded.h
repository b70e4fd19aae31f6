// float64 operations that round once each, whichever compiler: nvcc, and GCC where it may use FMA,
// would make an fma of a product and a sum.
#pragma once

#include "core/host_device.h"

namespace pixleap {

namespace rounded_detail {
static inline double kept(double x) {
#if defined(__FMA__)
  asm("" : "+x"(x));
#endif
  return x;
}
}  // namespace rounded_detail

PIXLEAP_HD static inline double mul_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return rounded_detail::kept(a * b);
#endif
}
PIXLEAP_HD static inline double add_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return rounded_detail::kept(a) + rounded_detail::kept(b);
#endif
}
PIXLEAP_HD static inline double fma_rn(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

}  // namespace pixleap
