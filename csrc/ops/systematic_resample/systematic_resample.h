// Systematic resampling: per row of log weights one uniform u, then for k = 0 ... K - 1 the least
// index whose cumulative weight exceeds (u + k) / K of the total.
#pragma once

#include "core/dispatch.h"
#include "core/philox.h"

namespace pixleap {

struct SystematicResampleParams {
  DType dtype;              // f32 or f64
  const void* log_weights;  // (rows, count), contiguous
  int64_t* out;             // as log_weights
  int64_t rows, count;
  uint64_t seed, offset, first_row;
  int64_t* bad_row;  // CPU: gets the first row without a finite positive total, else stays
};

void systematic_resample(const Out& out, const View& log_weights, int64_t seed, int64_t offset,
                         int64_t first_row);

void systematic_resample_cuda(const SystematicResampleParams&, const Device&);

// The number of a row: words 0 and 1 of the group `row` of the stream.
PIXLEAP_HD static inline double systematic_resample_uniform(uint64_t seed, uint64_t offset,
                                                            uint64_t row) {
  const Philox4 r = philox4x32_10(seed, row, offset);
  return uniform_open_double(r.v[0], r.v[1]);
}

}  // namespace pixleap
