#include "ops/nuclear_norm/nuclear_norm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lapack/matrix_batch.h"
#include "lapack/nuclear.h"

namespace pixleap {
namespace {

// Rows of C-contiguous arrays are columns of their transposes, which load without a transposition.
View transposed(View v) {
  if (v.ndim < 2) return v;
  std::swap(v.shape[v.ndim - 2], v.shape[v.ndim - 1]);
  std::swap(v.strides[v.ndim - 2], v.strides[v.ndim - 1]);
  return v;
}

// matrix (m x n) := left^T right of column-major (k x m) and (k x n). What is not finite shows in
// the product; loading it then raises the error.
void multiply(const Check& check, const Lapack& lapack, const MatrixBatch& left,
              const MatrixBatch& right, int64_t i, double* matrix) {
  const int64_t k = left.rows(), m = left.columns(), n = right.columns();
  const double *a = left.in_place(i), *b = right.in_place(i);
  const auto a_copy = scratch<double>(a ? 0 : m * k), b_copy = scratch<double>(b ? 0 : n * k);
  if (!a) left.load(i, a_copy.get());
  if (!b) right.load(i, b_copy.get());
  lapack.multiply_transposed(m, n, k, a ? a : a_copy.get(), b ? b : b_copy.get(), matrix);
  if (std::all_of(matrix, matrix + m * n, [](double x) { return std::isfinite(x); })) return;
  const auto buffer = scratch<double>(k * std::max(m, n));
  left.load(i, buffer.get());
  right.load(i, buffer.get());
  check.value(false, "a", "products with b that are finite", "an overflow");
}

}  // namespace

void nuclear_norm(const Out& out, const View& a, const Optional& b) {
  const Check check("nuclear_norm");
  const MatrixBatch first(check, transposed(a)), second(check, transposed(b.defined ? b : a));
  check.batch_output(out, a, 2);
  if (b.defined) {
    check.same_dtype(b, a);
    View expected = a;
    expected.shape[a.ndim - 2] = b.ndim == a.ndim ? b.size(-2) : 0;
    check.same_shape(b, expected);
    check.no_overlap(out, b, false);
  }
  const Lapack& lapack = Lapack::get(check.op());
  const int64_t k = first.rows(), m = first.columns(), n = b.defined ? second.columns() : k;
  for_each_matrix(lapack, first.count(), std::min(m, n), [&](int64_t begin, int64_t end) {
    const auto matrix = scratch<double>(m * n);
    for (int64_t i = begin; i < end; ++i) {
      if (b.defined)
        multiply(check, lapack, first, second, i, matrix.get());
      else
        first.load(i, matrix.get());  // k x m: the singular values are the same
      out.as<double>()[i] = pixleap::nuclear_norm(lapack, b.defined ? m : k, b.defined ? n : m,
                                                  matrix.get(), nullptr);
    }
  });
}

}  // namespace pixleap
