// A triangle of tiles, row by row: 0 is (0, 0), 1 is (1, 0), 2 is (1, 1), ...
#pragma once

#include "cuda/launch.h"

namespace pixleap {

struct TrianglePlace {
  int64_t row, column;
};

__device__ inline TrianglePlace triangle_place(int64_t index) {
  auto row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) * 0.5);
  while (row * (row + 1) / 2 > index) --row;  // what the square root rounded
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {row, index - row * (row + 1) / 2};
}

}  // namespace pixleap
