// Elementwise ops over equally shaped strided views, as rows that are as long as the strides allow.
#pragma once

#include <span>

#include "core/philox.h"  // PIXLEAP_HD
#include "core/view.h"

namespace pixleap {

struct Rows {
  int64_t count = 0, length = 0;
  int32_t outer_dims = 0;
  int64_t shape[kMaxDims] = {};  // of the outer dimensions

  // `strides` are those of each operand over the dimensions of `like`; they are overwritten with
  // the strides of the outer dimensions, then the inner one. Neighbouring dimensions merge where
  // they do so for every operand. The first `unit` operands have inner stride 1 after this, the
  // others 0 or 1; where that cannot be, rows have length 1.
  static Rows of(const View& like, std::span<int64_t* const> strides, size_t unit) {
    Rows r;
    int dims = 0;  // so far; `dims` - 1 is the one that the next may merge into
    int64_t shape[kMaxDims + 1];
    for (int d = 0; d < like.ndim; ++d) {
      const int64_t extent = like.shape[d];
      if (extent == 1) continue;
      bool merge = dims > 0;
      for (size_t k = 0; merge && k < strides.size(); ++k)
        merge = strides[k][dims - 1] == strides[k][d] * extent;
      if (!merge) shape[dims++] = 1;
      shape[dims - 1] *= extent;
      for (int64_t* s : strides) s[dims - 1] = s[d];
    }
    bool inner = dims > 0;
    for (size_t k = 0; inner && k < strides.size(); ++k) {
      const int64_t stride = strides[k][dims - 1];
      inner = stride == 1 || (stride == 0 && k >= unit);
    }
    if (!inner) {  // fewer than kMaxDims dimensions: the last one of `like` has extent 1
      for (int64_t* s : strides) s[dims] = 1;
      shape[dims++] = 1;
    }
    r.outer_dims = dims - 1;
    r.length = shape[dims - 1];
    r.count = 1;
    for (int i = 0; i < r.outer_dims; ++i) r.count *= r.shape[i] = shape[i];
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
