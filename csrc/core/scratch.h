#pragma once

#include <cstdint>
#include <memory>

namespace pixleap {

// Scratch without the cost of writing zeros first.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(n));
}

}  // namespace pixleap
