#include "lapack/nuclear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace pixleap {
namespace {

constexpr double kEps = std::numeric_limits<double>::epsilon();
// A sum of square roots of eigenvalues is taken where its estimated error is below this.
constexpr double kAccepted = 1e-11;
// The rounding of a symmetric eigenvalue routine is that of a perturbation of about this many eps
// of the matrix, in the Frobenius norm and in no preferred direction.
constexpr double kPerturbation = 8;
// A Cholesky pivot below this share of the largest one may be rounding noise.
constexpr double kSafePivot = 1e-9;

struct Sum {
  double value, error;
  bool accepted() const { return error <= kAccepted * value; }
};

// Sum of sqrt(values). A random perturbation with elements of size e moves an eigenvalue w by about
// e and its root by e / (2 sqrt w), independently of the others; k eigenvalues that are mere noise
// have the size e sqrt k, and add up.
Sum sum_of_roots(int64_t n, const double* values) {
  double norm = 0, value = 0, squares = 0, lost = 0;
  for (int64_t i = 0; i < n; ++i) norm += values[i] * values[i];
  const double root_n = std::sqrt(static_cast<double>(n));
  const double e = kPerturbation * kEps * std::sqrt(norm) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] > 0) value += std::sqrt(values[i]);
    if (values[i] > 4 * e * root_n)
      squares += e * e / (4 * values[i]);
    else
      lost += std::sqrt(std::fmax(e * root_n, -values[i]));
  }
  return {value, std::sqrt(squares) + lost};
}

double norm_error(int64_t n, double value) {  // of a backward-stable singular value routine
  return kEps * std::sqrt(static_cast<double>(n)) * value;
}

// Below this size singular values cost little more than eigenvalues.
constexpr int64_t kAlwaysSingularValues = 64;

Sum exact_nuclear_norm(const Lapack& lapack, int64_t m, int64_t n, double* a) {
  const int64_t k = std::min(m, n);
  const auto values = scratch<double>(k);
  lapack.singular_values(m, n, a, values.get());
  double value = 0;
  for (int64_t i = k - 1; i >= 0; --i) value += values[i];
  return {value, norm_error(k, value)};
}

// Sizes of the lower triangle of a symmetric matrix.
struct Sizes {
  double diagonal = 0, element = 0, norm = 0;  // largest |a_ii|, largest |a_ij|, Frobenius norm
};

Sizes sizes_of(int64_t n, const double* a) {
  Sizes s;
  double squares = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double* column = a + j * n;
    s.diagonal = std::fmax(s.diagonal, std::fabs(column[j]));
    squares += column[j] * column[j];
    for (int64_t i = j; i < n; ++i) {
      s.element = std::fmax(s.element, std::fabs(column[i]));
      if (i > j) squares += 2 * column[i] * column[i];
    }
  }
  s.norm = std::sqrt(squares);
  return s;
}

struct Factor {
  int64_t rank = 0;
  double residual = 0;
  // Error of the roots of c: its rounding, e per direction, moves a pivot p by e and its root by
  // e / (2 sqrt p). No method can do better: the input itself was rounded.
  double root_error = 0;
  double diagonal = 0;
};

double root_error(int64_t n, int64_t rank, double norm, FunctionRef<double(int64_t)> pivot) {
  const double e = kPerturbation * kEps * norm / static_cast<double>(n);
  double squares = 0;
  for (int64_t i = 0; i < rank; ++i) squares += e * e / (4 * pivot(i));
  return std::sqrt(squares);
}

// a := L (n x rank, zeros above the diagonal, rows back in their places) with L L^T = a, to the
// rounding of a.
void factor_pivoted(const Lapack& lapack, int64_t n, const Sizes& sizes, double* a,
                    Factor& result) {
  const auto pivot = scratch<int>(n);
  const auto work = scratch<double>(2 * n);
  const double tolerance = static_cast<double>(n) * kEps * sizes.diagonal;
  result.rank = lapack.pivoted_cholesky(n, a, pivot.get(), tolerance, work.get());
  result.root_error = root_error(n, result.rank, sizes.norm,
                                 [&](int64_t i) { return a[i * (n + 1)] * a[i * (n + 1)]; });
  for (int64_t j = 0; j < result.rank; ++j) {
    double* column = a + j * n;
    for (int64_t i = 0; i < n; ++i) work[pivot[i] - 1] = i < j ? 0.0 : column[i];
    std::memcpy(column, work.get(), static_cast<size_t>(n) * sizeof(double));
  }
}

// a := V sqrt(w) of the eigenvalues above rounding (n x rank).
void factor_eigh(const Lapack& lapack, int64_t n, const Sizes& sizes, double* a, Factor& result) {
  const auto values = scratch<double>(n);
  lapack.eigenvectors(n, a, values.get());
  const double least = static_cast<double>(n) * kEps * values[n - 1];
  const double* first = std::upper_bound(values.get(), values.get() + n, least);
  const int64_t dropped = first - values.get();
  result.rank = n - dropped;
  for (int64_t j = 0; j < result.rank; ++j) {
    const double root = std::sqrt(first[j]);
    for (int64_t i = 0; i < n; ++i) a[j * n + i] = root * a[(j + dropped) * n + i];
  }
  result.root_error = root_error(n, result.rank, sizes.norm, [&](int64_t i) { return first[i]; });
}

// a := S (n x rank) with S S^T = c; `left` holds n n numbers.
Factor factor(const Lapack& lapack, int64_t n, LoadMatrix c, TraceMethod method, double* a,
              double* left) {
  c(a);
  c(left);
  const Sizes sizes = sizes_of(n, left);
  Factor result;
  result.diagonal = sizes.diagonal;
  if (method == TraceMethod::eigh)
    factor_eigh(lapack, n, sizes, a, result);
  else
    factor_pivoted(lapack, n, sizes, a, result);
  lapack.gram(n, result.rank, a, false, -1, 1, left);
  if (sizes.element > 0) result.residual = sizes_of(n, left).element / sizes.element;
  return result;
}

// By the eigenvalues of L^T c2 L, which are those of c1 c2. False where another way is needed.
bool trace_by_cholesky(const Lapack& lapack, int64_t n, LoadMatrix c1, LoadMatrix c2, bool forced,
                       double* l, double* a, TraceResult& result) {
  c1(l);
  const double norm = sizes_of(n, l).norm;
  if (!lapack.cholesky(n, l)) return false;
  const auto pivot = [&](int64_t i) { return l[i * (n + 1)] * l[i * (n + 1)]; };
  double most = 0, least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    most = std::fmax(most, pivot(i));
    least = std::fmin(least, pivot(i));
  }
  if (!forced && least <= kSafePivot * most) return false;
  c2(a);
  const double other = sizes_of(n, a).diagonal;
  lapack.congruence(n, a, l);
  const double product = sizes_of(n, a).norm;
  if (other > 0 && !(product > 1e-200 && product < 1e200)) return false;  // overflow, underflow
  const auto values = scratch<double>(n);
  lapack.eigenvalues(n, a, values.get());
  const Sum sum = sum_of_roots(n, values.get());
  if (!forced && !sum.accepted()) return false;
  result.method = TraceMethod::cholesky;
  result.value = sum.value;
  result.error = sum.error + root_error(n, n, norm, pivot) * std::sqrt(other);
  result.rank1 = result.rank2 = n;
  return true;
}

}  // namespace

double nuclear_norm(const Lapack& lapack, int64_t m, int64_t n, double* a, double* error) {
  const int64_t k = std::min(m, n);
  Sum sum{0, 0};
  double most = 0;
  for (int64_t i = 0; i < m * n; ++i) most = std::fmax(most, std::fabs(a[i]));
  // Squares must neither overflow nor vanish.
  const double scale =
      most > 1e100 || (most > 0 && most < 1e-100) ? std::exp2(std::ilogb(most)) : 1;
  if (scale != 1)
    for (int64_t i = 0; i < m * n; ++i) a[i] /= scale;
  if (k > kAlwaysSingularValues) {
    const auto gram = scratch<double>(k * k);
    const auto values = scratch<double>(k);
    lapack.gram(k, std::max(m, n), a, m > n, 1, 0, gram.get());
    lapack.eigenvalues(k, gram.get(), values.get());
    sum = sum_of_roots(k, values.get());
  }
  if (k > 0 && (k <= kAlwaysSingularValues || !sum.accepted()))
    sum = exact_nuclear_norm(lapack, m, n, a);
  if (error) *error = scale * sum.error;
  return scale * sum.value;
}

TraceResult trace_sqrt_product(const Lapack& lapack, int64_t n, LoadMatrix c1, LoadMatrix c2,
                               TraceMethod method) {
  TraceResult result;
  const bool forced = method == TraceMethod::cholesky;
  if (n == 0) return result;
  const auto a = scratch<double>(n * n), b = scratch<double>(n * n);
  if (forced || method == TraceMethod::automatic)
    if (trace_by_cholesky(lapack, n, c1, c2, forced, a.get(), b.get(), result)) return result;
  if (forced) {
    result.value = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  result.method = method == TraceMethod::eigh ? method : TraceMethod::pivoted;
  const auto left = scratch<double>(n * n);
  const Factor first = factor(lapack, n, c1, method, a.get(), left.get());
  const Factor second = factor(lapack, n, c2, method, b.get(), left.get());
  result.rank1 = first.rank;
  result.rank2 = second.rank;
  result.residual1 = first.residual;
  result.residual2 = second.residual;
  if (first.rank == 0 || second.rank == 0) return result;
  double* product = left.get();
  lapack.multiply_transposed(first.rank, second.rank, n, a.get(), b.get(), product);
  result.value = nuclear_norm(lapack, first.rank, second.rank, product, &result.error);
  result.error +=
      first.root_error * std::sqrt(second.diagonal) + second.root_error * std::sqrt(first.diagonal);
  return result;
}

}  // namespace pixleap
