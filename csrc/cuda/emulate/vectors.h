// CUDA's vector types.
#pragma once

#define PIXLEAP_VECTORS(T, name, align2, align4)                     \
  struct __attribute__((aligned(align2))) name##2 { T x, y; };       \
  struct name##3 { T x, y, z; };                                     \
  struct __attribute__((aligned(align4))) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PIXLEAP_VECTORS(float, float, 8, 16)
PIXLEAP_VECTORS(double, double, 16, 16)
PIXLEAP_VECTORS(int, int, 8, 16)
PIXLEAP_VECTORS(unsigned char, uchar, 2, 4)
PIXLEAP_VECTORS(signed char, char, 2, 4)
PIXLEAP_VECTORS(short, short, 4, 8)
PIXLEAP_VECTORS(unsigned short, ushort, 4, 8)
PIXLEAP_VECTORS(long long, longlong, 16, 16)
PIXLEAP_VECTORS(unsigned long long, ulonglong, 16, 16)
#undef PIXLEAP_VECTORS
struct __attribute__((aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
