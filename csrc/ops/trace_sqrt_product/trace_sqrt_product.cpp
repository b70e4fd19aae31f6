#include "ops/trace_sqrt_product/trace_sqrt_product.h"

#include <cmath>
#include <string>

#include "lapack/matrix_batch.h"
#include "lapack/nuclear.h"

namespace pixleap {
namespace {

constexpr std::string_view kMethods[] = {"auto", "cholesky", "pivoted", "eigh"};

TraceMethod parse(const Check& check, std::string_view method) {
  for (int i = 0; i < 4; ++i)
    if (method == kMethods[i]) return static_cast<TraceMethod>(i);
  check.value(false, "method", "auto, cholesky, pivoted or eigh", std::string(method));
  return TraceMethod::automatic;
}

}  // namespace

void trace_sqrt_product(const Out& out, const Out& info, const View& c1, const View& c2,
                        std::string_view method) {
  const Check check("trace_sqrt_product");
  const TraceMethod wanted = parse(check, method);
  const MatrixBatch first(check, c1), second(check, c2);
  const int64_t d = first.rows();
  check.value(d == first.columns(), "c1", "square matrices", shape_string(c1));
  check.same_shape(c2, c1);
  check.same_dtype(c2, c1);
  check.batch_output(out, c1, 2);
  check.dtype(info, {DType::f64});
  check.shape(info, {first.count(), kTraceInfo});
  check.contiguous(info);
  check.output(info);
  check.no_overlap(info, out, false);
  const Lapack& lapack = Lapack::get(check.op());
  const auto results = std::make_unique<TraceResult[]>(static_cast<size_t>(first.count()));
  for_each_matrix(lapack, first.count(), d, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      results[i] = pixleap::trace_sqrt_product(
          lapack, d, [&](double* a) { first.load_symmetric(i, a); },
          [&](double* a) { second.load_symmetric(i, a); }, wanted);
  });
  for (int64_t i = 0; i < first.count(); ++i) {
    const TraceResult& r = results[i];
    check.value(!std::isnan(r.value), "c1", "positive definite matrices for method cholesky",
                "a singular one" + first.where(i));
    first.require_semidefinite(i, r.residual1);
    second.require_semidefinite(i, r.residual2);
  }
  for (int64_t i = 0; i < first.count(); ++i) {
    const TraceResult& r = results[i];
    out.as<double>()[i] = r.value;
    double* row = info.as<double>() + i * kTraceInfo;
    row[0] = static_cast<double>(r.method);
    row[1] = static_cast<double>(r.rank1);
    row[2] = static_cast<double>(r.rank2);
    row[3] = r.error;
    row[4] = r.residual1;
    row[5] = r.residual2;
  }
}

}  // namespace pixleap
