// Projections of points onto near-uniform orthogonal directions, in d log d steps per point:
//   out[p, n] = sqrt(D / d) (R x_n)[p],  R = H S_2 H S_1 H S_0
// with H the orthonormal Hadamard matrix, S_r the signs of flips[r], and x_n padded with zeros to
// D, the next power of two.
#pragma once

#include <span>

#include "core/dispatch.h"

namespace pixleap {

constexpr int64_t kHadamardRounds = 3;
constexpr int64_t kHadamardMaxSize = int64_t{1} << 20;
constexpr int64_t kHadamardShared = 8192;  // CUDA: what a block transforms in shared memory

struct HadamardProjectionParams {
  const void* x;  // (rows, depth), last stride 1
  DType dtype;
  int64_t rows, depth, stride;
  const uint8_t* flips;  // (3, size) contiguous: not 0 turns the sign
  int64_t size;          // D
  float* out;            // (count, rows), last stride 1
  int64_t count, out_stride;
  // CUDA, where size > kHadamardShared: scratch, `size` numbers for each of the blocks.
  float* slots;
  int64_t slot_count;
};

void hadamard_projection(const Out& out, std::span<const Out> workspace, const View& x,
                         const View& flips, int64_t count);

PIXLEAP_DECLARE_KERNELS(hadamard_projection, HadamardProjectionParams)

}  // namespace pixleap
