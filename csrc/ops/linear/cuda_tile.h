// How tiles of the CUDA kernels of linear lie in shared memory: 64 steps of K at a time.
#pragma once

#include "cuda/launch.h"

namespace pixleap {

constexpr int kLinearDepth = 64;

// Element of chunk `chunk` (8 numbers along K) of a row of x: rows of 128 bytes, swizzled.
__device__ inline int row_chunk(int row, int chunk) {
  return row * kLinearDepth + (chunk ^ (row & 7)) * 8;
}
// Word `row` along K of feature n in a panel of weights that has `rows` of them: as they are
// packed, with two rows of every four turned by half a row, so that the lanes of a fragment read
// different banks.
__device__ inline int packed_word(int panel, int rows, int row, int n) {
  return (panel * rows + row) * 16 + (n ^ (row & 2) << 2);
}

}  // namespace pixleap
