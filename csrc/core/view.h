// The only array type below the binding: a pointer with dtype, shape, strides and device.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pixleap {

constexpr int kMaxDims = 8;

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int32_t index = 0;
  void* stream = nullptr;  // the caller's current stream, CUDA only
  bool operator==(const Device& o) const { return type == o.type && index == o.index; }
};

struct View {
  void* data = nullptr;
  DType dtype = DType::other;
  bool read_only = false;
  bool defined = false;  // false: the caller passed None
  int32_t ndim = 0;
  Device device;
  const char* name = "";  // argument name, for messages
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements

  int64_t size(int dim) const { return shape[dim < 0 ? dim + ndim : dim]; }
  int64_t stride(int dim) const { return strides[dim < 0 ? dim + ndim : dim]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return numel() == 0;
      expected *= shape[i];
    }
    return true;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Front parameters say what an argument is; the binding and the torch schema follow from the type.
struct Out : View {};       // written to
struct Optional : View {};  // may be None: test .defined

}  // namespace pixleap
