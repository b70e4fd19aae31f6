#include "lapack/matrix_batch.h"

#include <algorithm>
#include <cmath>
#include <mutex>

namespace pixleap {
namespace {

constexpr int64_t kTile = 32;  // rows and columns of either order stay in the cache

// What the rounding of a covariance computed by matrix products can explain, per dtype.
double asymmetry_allowed(DType dtype) { return dtype == DType::f64 ? 1e-8 : 1e-4; }
double negativity_allowed(DType dtype) { return dtype == DType::f64 ? 1e-6 : 1e-4; }

}  // namespace

MatrixBatch::MatrixBatch(const Check& check, const View& v) : check_(check), view_(v), count_(1) {
  if (v.device.type == DeviceType::cuda)
    throw BackendError(std::string(check.op()) + ": argument '" + v.name +
                       "' is on a CUDA device, but the op is LAPACK's and has no CUDA kernel; "
                       "pixleap.metrics.polar has traces of square roots by matrix products");
  check.dtype(v, {DType::f32, DType::f64});
  check.value(v.ndim >= 2, v.name, "at least 2 dimensions", static_cast<int64_t>(v.ndim));
  for (int i = 0; i < v.ndim - 2; ++i) count_ *= v.shape[i];
  const bool fits = v.size(-1) < (1 << 15) && v.size(-2) < (1 << 15);
  check.value(fits, v.name, "matrices of less than 32768 rows and columns", shape_string(v));
}

int64_t MatrixBatch::offset(int64_t index) const {
  int64_t offset = 0;
  for (int i = view_.ndim - 3; i >= 0; --i) {
    offset += (index % view_.shape[i]) * view_.strides[i];
    index /= view_.shape[i];
  }
  return offset;
}

std::string MatrixBatch::where(int64_t index) const {
  if (view_.ndim == 2) return "";
  std::string text = ")";
  for (int i = view_.ndim - 3; i >= 0; --i) {
    text = std::to_string(index % view_.shape[i]) + (i < view_.ndim - 3 ? ", " : "") + text;
    index /= view_.shape[i];
  }
  return " in matrix (" + text;
}

template <class F>
void MatrixBatch::each(int64_t index, F&& f) const {
  const int64_t start = offset(index), m = rows(), n = columns();
  const int64_t by_row = view_.stride(-2), by_column = view_.stride(-1);
  const auto run = [&](auto* data) {
    for (int64_t j0 = 0; j0 < n; j0 += kTile)
      for (int64_t i0 = 0; i0 < m; i0 += kTile)
        for (int64_t j = j0; j < std::min(n, j0 + kTile); ++j)
          for (int64_t i = i0; i < std::min(m, i0 + kTile); ++i)
            f(data[i * by_row + j * by_column], i, j);
  };
  if (view_.dtype == DType::f64)
    run(view_.as<double>() + start);
  else
    run(view_.as<float>() + start);
}

void MatrixBatch::require_finite(int64_t index, bool finite) const {
  if (!finite) check_.value(false, view_.name, "finite values", "NaN or infinity" + where(index));
}

void MatrixBatch::load(int64_t index, double* dst) const {
  bool finite = true;
  each(index, [&, m = rows()](auto& x, int64_t i, int64_t j) {
    finite &= std::isfinite(x);
    dst[i + j * m] = static_cast<double>(x);
  });
  require_finite(index, finite);
}

const double* MatrixBatch::in_place(int64_t index) const {
  const bool laid_out = view_.dtype == DType::f64 && (rows() <= 1 || view_.stride(-2) == 1) &&
                        (columns() <= 1 || view_.stride(-1) == rows());
  return laid_out ? view_.as<double>() + offset(index) : nullptr;
}

void MatrixBatch::load_symmetric(int64_t index, double* dst) const {
  const int64_t n = rows(), start = offset(index), tiles = (n + kTile - 1) / kTile;
  const int64_t by_row = view_.stride(-2), by_column = view_.stride(-1);
  bool finite = true;
  std::mutex worst_mutex;
  double most = 0, difference = 0;
  const auto run = [&](const auto* data) {
    parallel_for(tiles, 4, [&](int64_t first, int64_t last) {
      double here = 0, apart = 0, sum = 0;
      for (int64_t j0 = first * kTile; j0 < std::min(n, last * kTile); j0 += kTile)
        for (int64_t i0 = j0; i0 < n; i0 += kTile)
          for (int64_t j = j0; j < std::min(n, j0 + kTile); ++j)
            for (int64_t i = std::max(i0, j); i < std::min(n, i0 + kTile); ++i) {
              const double x = static_cast<double>(data[i * by_row + j * by_column]);
              const double y = static_cast<double>(data[j * by_row + i * by_column]);
              here = std::fmax(here, std::fabs(x));
              apart = std::fmax(apart, std::fabs(x - y));
              sum += (x - x) + (y - y);  // 0, or NaN where one of them is not finite
              dst[i + j * n] = 0.5 * (x + y);
            }
      const std::lock_guard lock(worst_mutex);
      most = std::fmax(most, here);
      difference = std::fmax(difference, apart);
      finite = finite && sum == 0;
    });
  };
  if (view_.dtype == DType::f64)
    run(view_.as<double>() + start);
  else
    run(view_.as<float>() + start);
  require_finite(index, finite);
  if (difference > asymmetry_allowed(view_.dtype) * most)
    check_.value(false, view_.name, "symmetric matrices",
                 "|a - a^T| up to " + std::to_string(difference) + "" + where(index));
}

void MatrixBatch::store(int64_t index, const double* src) const {
  each(index, [&, m = rows()](auto& x, int64_t i, int64_t j) {
    x = static_cast<std::remove_reference_t<decltype(x)>>(src[i + j * m]);
  });
}

void MatrixBatch::require_semidefinite(int64_t index, double defect) const {
  if (defect > negativity_allowed(view_.dtype))
    check_.value(false, view_.name, "positive semi-definite matrices",
                 "an eigenvalue clearly below zero" + where(index));
}

void for_each_matrix(const Lapack& lapack, int64_t count, int64_t n,
                     FunctionRef<void(int64_t, int64_t)> body) {
  const bool apart = n <= kSmallMatrix;
  const Lapack::Session session(lapack, apart ? 1 : num_threads());
  if (apart)
    parallel_for(count, 1, body);
  else
    body(0, count);
}

}  // namespace pixleap
