// Element types that cross the binding.
#pragma once

#include <cstdint>

namespace pixleap {

enum class DType : uint8_t { f32, bf16, f16, f64, i32, i64, u8, i8, boolean, other };

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

constexpr const char* dtype_name(DType t) {
  constexpr const char* names[] = {"float32", "bfloat16", "float16", "float64", "int32",
                                   "int64",   "uint8",    "int8",    "bool",    "unsupported"};
  return names[static_cast<int>(t)];
}

constexpr int64_t dtype_size(DType t) {
  constexpr int64_t sizes[] = {4, 2, 2, 8, 4, 8, 1, 1, 1, 0};
  return sizes[static_cast<int>(t)];
}

// Calls f.template operator()<T>() for a floating type that a front has already checked.
template <class F>
void with_float_type(DType t, F&& f) {
  switch (t) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::bf16:
      return f.template operator()<bf16_t>();
    case DType::f16:
      return f.template operator()<f16_t>();
    default:
      return;
  }
}

}  // namespace pixleap
