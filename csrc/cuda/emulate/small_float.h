// What the two 16-bit floats have in common: arithmetic in float32, rounded to nearest even.
#pragma once

#define PIXLEAP_SMALL_FLOAT(T)                                                              \
  inline T operator+(T a, T b) { return T(static_cast<float>(a) + static_cast<float>(b)); } \
  inline T operator-(T a, T b) { return T(static_cast<float>(a) - static_cast<float>(b)); } \
  inline T operator*(T a, T b) { return T(static_cast<float>(a) * static_cast<float>(b)); } \
  inline T operator/(T a, T b) { return T(static_cast<float>(a) / static_cast<float>(b)); } \
  inline bool operator<(T a, T b) { return static_cast<float>(a) < static_cast<float>(b); } \
  inline bool operator>(T a, T b) { return static_cast<float>(a) > static_cast<float>(b); } \
  inline bool operator==(T a, T b) { return static_cast<float>(a) == static_cast<float>(b); }

#define PIXLEAP_SMALL_FLOAT_PAIR(T, T2, to_float, to_float2, from_floats, from_float2, join)   \
  struct __attribute__((aligned(4))) T2 {                                                      \
    T x, y;                                                                                    \
  };                                                                                           \
  inline T2 join(T low, T high) { return {low, high}; }                                        \
  inline T2 from_floats(float low, float high) { return {T(low), T(high)}; }                   \
  inline T2 from_float2(float2 v) { return {T(v.x), T(v.y)}; }                                 \
  inline float2 to_float2(T2 v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; } \
  inline T __low2##to_float(T2 v) { return v.x; }                                              \
  inline T __high2##to_float(T2 v) { return v.y; }                                             \
  inline float __low2float(T2 v) { return static_cast<float>(v.x); }                           \
  inline float __high2float(T2 v) { return static_cast<float>(v.y); }
