// Batches of matrices (..., m, n) of any strides, float32 or float64, as column-major float64.
#pragma once

#include <string>

#include "core/check.h"
#include "core/parallel.h"
#include "lapack/lapack.h"

namespace pixleap {

// Matrices up to this size are computed one per thread; larger ones one after the other, with all
// threads inside LAPACK.
constexpr int64_t kSmallMatrix = 192;

class MatrixBatch {
 public:
  MatrixBatch(const Check& check, const View& v);

  int64_t count() const { return count_; }
  int64_t rows() const { return view_.size(-2); }
  int64_t columns() const { return view_.size(-1); }

  // dst[i + j rows] = element (i, j). Raises ValueError for NaN or infinity.
  void load(int64_t index, double* dst) const;
  // The matrix where it lies, if it is laid out as load() would, else nullptr. Not checked.
  const double* in_place(int64_t index) const;
  // The lower triangle, of the mean of both. Raises for a matrix that is not symmetric as well.
  void load_symmetric(int64_t index, double* dst) const;
  // Raises ValueError where `defect`, measured on a matrix relative to its size, is not rounding.
  void require_semidefinite(int64_t index, double defect) const;
  // Element (i, j) = src[i + j rows].
  void store(int64_t index, const double* src) const;
  // " in matrix (2, 0)" for messages; nothing where there is but one.
  std::string where(int64_t index) const;

 private:
  template <class F>
  void each(int64_t index, F&& f) const;
  int64_t offset(int64_t index) const;
  void require_finite(int64_t index, bool finite) const;

  const Check& check_;
  View view_;
  int64_t count_;
};

// Runs body(first, last) over `count` problems of size n with LAPACK's threads set accordingly.
void for_each_matrix(const Lapack& lapack, int64_t count, int64_t n,
                     FunctionRef<void(int64_t, int64_t)> body);

}  // namespace pixleap
