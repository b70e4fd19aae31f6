// Elementwise ops over equally shaped strided views: one long row when everything is contiguous,
// else rows along the last dimension.
#pragma once

#include <span>

#include "core/philox.h"  // PIXLEAP_HD
#include "core/view.h"

namespace pixleap {

struct Rows {
  int64_t count = 0, length = 0;
  int32_t outer_dims = 0;
  int64_t shape[kMaxDims] = {};  // of the outer dimensions

  // All views share the shape of `like`; `dense` tells that all of them are contiguous.
  static Rows of(const View& like, bool dense) {
    Rows r;
    if (dense || like.ndim == 0) {
      r.count = 1;
      r.length = like.numel();
      return r;
    }
    r.outer_dims = like.ndim - 1;
    r.count = 1;
    for (int i = 0; i < r.outer_dims; ++i) r.count *= r.shape[i] = like.shape[i];
    r.length = like.size(-1);
    return r;
  }
};

// Offset in elements of row `row` inside a view with these strides.
PIXLEAP_HD static inline int64_t row_offset(const Rows& rows, const int64_t* strides, int64_t row) {
  int64_t offset = 0;
  for (int i = rows.outer_dims - 1; i >= 0; --i) {
    offset += (row % rows.shape[i]) * strides[i];
    row /= rows.shape[i];
  }
  return offset;
}

}  // namespace pixleap
