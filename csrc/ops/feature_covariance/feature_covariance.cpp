#include "ops/feature_covariance/feature_covariance.h"

#include <cmath>

#include "core/check.h"
#include "core/parallel.h"
#include "ops/feature_moments/feature_moments.h"

namespace pixleap {
namespace {

struct Double2 {  // high + low: 106 bits
  double high, low;
};

Double2 from_fixed(const int64_t* cell) {
  using Wide = unsigned __int128;  // magnitudes: no signed overflow whatever the totals hold
  const Wide bits =
      (static_cast<Wide>(static_cast<uint64_t>(cell[1])) << 64) | static_cast<uint64_t>(cell[0]);
  const bool negative = cell[1] < 0;
  const Wide magnitude = negative ? -bits : bits;
  const double high = static_cast<double>(magnitude);
  const Wide rounded = static_cast<Wide>(high);
  const double low = magnitude >= rounded ? static_cast<double>(magnitude - rounded)
                                          : -static_cast<double>(rounded - magnitude);
  const double sign = negative ? -1 : 1;
  return {std::ldexp(sign * high, -kFixedPoint), std::ldexp(sign * low, -kFixedPoint)};
}

Double2 divide(Double2 a, double b) {
  const double q = a.high / b;
  return {q, (std::fma(-q, b, a.high) + a.low) / b};
}

Double2 multiply(Double2 a, Double2 b) {
  const double p = a.high * b.high;
  return {p, std::fma(a.high, b.high, -p) + (a.high * b.low + a.low * b.high)};
}

// a - b, rounded once.
double difference(Double2 a, Double2 b) {
  const double t = a.high - b.high, z = t - a.high;
  const double rounded_off = (a.high - (t - z)) - (b.high + z);
  return t + (rounded_off + (a.low - b.low));
}

}  // namespace

void feature_covariance(const Out& mean, const Out& covariance, const View& second,
                        const View& first, int64_t count) {
  const Check check("feature_covariance");
  check.on_cpu(first);
  check.dtype(first, {DType::i64});
  check.dtype(second, {DType::i64});
  check.ndim(first, 2);
  const int64_t d = first.size(0);
  check.value(d < (1 << 24), "first", "less than 2^24 rows", shape_string(first));
  check.shape(first, {d, 2});
  check.shape(second, {d * (d + 1) / 2, 2});
  check.contiguous(first);
  check.contiguous(second);
  check.same_device(second, first);
  check.value(count >= 2 && count < (int64_t{1} << 53), "count", "at least 2 rows", count);
  check.dtype(mean, {DType::f64});
  check.dtype(covariance, {DType::f64});
  check.shape(mean, {d});
  check.shape(covariance, {d, d});
  for (const Out* out : {&mean, &covariance}) {
    check.same_device(*out, first);
    check.contiguous(*out);
    check.output(*out);
    check.no_overlap(*out, first, false);
    check.no_overlap(*out, second, false);
  }
  check.no_overlap(mean, covariance, false);
  const double n = static_cast<double>(count);
  const int64_t *sums = first.as<int64_t>(), *squares = second.as<int64_t>();
  double* c = covariance.as<double>();
  for (int64_t i = 0; i < d; ++i) {
    const Double2 m = divide(from_fixed(sums + 2 * i), n);
    mean.as<double>()[i] = m.high + m.low;
  }
  parallel_for(d, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Double2 si = divide(from_fixed(sums + 2 * i), n);
      for (int64_t j = 0; j <= i; ++j) {
        const Double2 product = multiply(si, from_fixed(sums + 2 * j));
        const Double2 total = from_fixed(squares + i * (i + 1) + 2 * j);
        c[i * d + j] = c[j * d + i] = difference(total, product) / (n - 1);
      }
    }
  });
}

}  // namespace pixleap
