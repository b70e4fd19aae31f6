// Two sets of points, or one with itself: what the fronts of the pairwise ops hand to
// simd/pairwise.h.
#pragma once

#include <span>
#include <vector>

#include "core/check.h"
#include "core/function_ref.h"
#include "core/view.h"

namespace pixleap {

struct PairwiseSet {
  const void* data;  // (rows, depth), last stride 1
  int64_t rows;
  int64_t stride;  // of the rows, in elements
  float* norms;    // (rows,): scratch of the kernel
};

struct PairwiseSets {
  DType dtype;
  int64_t depth;
  PairwiseSet x, y;  // the same where symmetric
  bool symmetric;    // pairs i != j of one set
  float* centre;     // (depth,): scratch of the kernel, zeros on the CPU
  float scale;       // of the centred points: a power of two, set by the kernel
  // CUDA only: bits of the largest centred coordinate, from which kernels get the scale, and the
  // rest of the caller's scratch.
  uint32_t* largest;
  double* rest;
  int64_t rest_size;
};

// Checks x (N, d) and y (M, d) or None, and points the sets into `scratch`, which it sizes, or into
// the `workspace` that a CUDA kernel needs: (d + N + M) / 2 + 1 numbers and `least` more.
PairwiseSets pairwise_sets(const Check& check, const View& x, const View& y,
                           std::vector<float>& scratch, std::span<const Out> workspace,
                           int64_t least);

// Calls body with `count` floats at a multiple of 64 bytes. Here and not in the kernels, since a
// destructor leaves weak symbols in files compiled for one ISA.
void with_scratch(int64_t count, FunctionRef<void(float*)> body);

}  // namespace pixleap
