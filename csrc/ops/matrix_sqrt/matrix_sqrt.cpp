#include "ops/matrix_sqrt/matrix_sqrt.h"

#include <algorithm>
#include <cmath>

#include "lapack/matrix_batch.h"

namespace pixleap {
namespace {

// a := its square root W W^T, W = V w^(1/4); `scaled` holds d * d numbers. Returns how far the
// smallest eigenvalue lies below zero, over the largest.
double square_root(const Lapack& lapack, int64_t d, double* a, double* scaled, double* values) {
  lapack.eigenvectors(d, a, values);
  for (int64_t j = 0; j < d; ++j) {
    const double root = std::sqrt(std::sqrt(std::max(values[j], 0.0)));
    for (int64_t i = 0; i < d; ++i) scaled[i + j * d] = root * a[i + j * d];
  }
  lapack.gram(d, d, scaled, false, 1, 0, a);
  for (int64_t j = 0; j < d; ++j)
    for (int64_t i = 0; i < j; ++i) a[i + j * d] = a[j + i * d];
  const double most = std::fmax(std::fabs(values[0]), std::fabs(values[d - 1]));
  return most > 0 ? std::fmax(-values[0], 0.0) / most : 0.0;
}

}  // namespace

void matrix_sqrt(const Out& out, const View& a) {
  const Check check("matrix_sqrt");
  const MatrixBatch input(check, a);
  const int64_t d = input.rows();
  check.value(d == input.columns(), "a", "square matrices", shape_string(a));
  const MatrixBatch output(check, out);
  check.same_shape(out, a);
  check.same_dtype(out, a);
  check.output(out);
  check.no_overlap(out, a, true);
  if (a.numel() == 0) return;
  const Lapack& lapack = Lapack::get(check.op());
  const auto below = scratch<double>(input.count());
  for_each_matrix(lapack, input.count(), d, [&](int64_t first, int64_t last) {
    const auto matrix = scratch<double>(d * d), scaled = scratch<double>(d * d);
    const auto values = scratch<double>(d);
    for (int64_t b = first; b < last; ++b) {
      input.load_symmetric(b, matrix.get());
      below[b] = square_root(lapack, d, matrix.get(), scaled.get(), values.get());
      output.store(b, matrix.get());
    }
  });
  for (int64_t b = 0; b < input.count(); ++b) input.require_semidefinite(b, below[b]);
}

}  // namespace pixleap
