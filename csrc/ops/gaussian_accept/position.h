// One position of gaussian_accept, the same on CPU and GPU, in float64.
#pragma once

#include <cmath>

#include "core/philox.h"
#include "ops/gaussian_accept/gaussian_accept.h"

namespace pixleap {
namespace {

struct GaussianPosition {
  const float *p_mean, *p_std, *q_mean, *q_std, *x;
  float* out;
  int64_t p_step, q_step, channels;  // steps of the deviations: 0 or 1
};

struct DoublePair {
  double first, second;
};

// Box-Muller with 52 bits each.
PIXLEAP_HD inline DoublePair double_normals(const Philox4& w) {
  const double radius = std::sqrt(-2.0 * std::log(uniform_open_double(w.v[0], w.v[1])));
  const double angle = 6.283185307179586 * uniform_open_double(w.v[2], w.v[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

PIXLEAP_HD inline GaussianFault gaussian_fault(const GaussianPosition& at) {
  GaussianFault fault = GaussianFault::none;
  for (int64_t d = 0; d < at.channels; ++d) {
    const float p_std = at.p_std[d * at.p_step], q_std = at.q_std[d * at.q_step];
    const GaussianFault found = !std::isfinite(at.p_mean[d]) ? GaussianFault::target_mean
                                : !(std::isfinite(p_std) && p_std >= 0.f)
                                    ? GaussianFault::target_std
                                : !std::isfinite(at.q_mean[d]) ? GaussianFault::draft_mean
                                : !(std::isfinite(q_std) && q_std >= 0.f) ? GaussianFault::draft_std
                                : !std::isfinite(at.x[d])                 ? GaussianFault::x
                                                                          : GaussianFault::none;
    if (found < fault) fault = found;
  }
  return fault;
}

// The stream of tries of a position: slot 0 has the decision and the choice of envelope, slot 1 two
// normals more, the rest the normals of the channels.
struct GaussianTries {
  uint64_t key, position, first;
  PIXLEAP_HD Philox4 words(int64_t slot) const {
    return philox4x32_10(key, first + static_cast<uint64_t>(slot), position);
  }
};

PIXLEAP_HD inline void draw_target(const GaussianPosition& at, const GaussianTries& tries) {
  for (int64_t d = 0; d < at.channels; d += 2) {
    const DoublePair z = double_normals(tries.words(2 + d / 2));
    for (int64_t i = d; i < at.channels && i < d + 2; ++i)
      at.out[i] = static_cast<float>(at.p_mean[i] + static_cast<double>(at.p_std[i * at.p_step]) *
                                                        (i == d ? z.first : z.second));
  }
}

// T = log(p / q) at y = p_mean + p_std z, channel by channel: k + b z + a z^2.
struct LogRatio {
  double k, b, a;
};
PIXLEAP_HD inline LogRatio log_ratio(const GaussianPosition& at, int64_t d) {
  const double p_std = at.p_std[d * at.p_step], q_std = at.q_std[d * at.q_step];
  if (p_std == 0) return {0, 0, 0};  // both: the same point
  const double scale = p_std / q_std;
  const double shift = (static_cast<double>(at.p_mean[d]) - at.q_mean[d]) / q_std;
  return {0.5 * shift * shift - std::log(scale), scale * shift, 0.5 * (scale * scale - 1)};
}

// The residual for deviations that differ. y ~ p would stay with (1 - exp(-T))+, which takes
// 1 / TV tries. As 1 - exp(-T) <= T <= C + sum A_d z_d^2, the mixture of p and of p with one
// channel weighted by z^2 is an envelope whose mass C + sum A_d is small where p and q are close.
PIXLEAP_HD inline void draw_residual(const GaussianPosition& at, GaussianTries tries) {
  double constant = 0, slopes = 0;
  for (int64_t d = 0; d < at.channels; ++d) {
    const LogRatio t = log_ratio(at, d);
    const double half = 0.5 * std::fabs(t.b), slope = t.a + half;
    constant += t.k + half;
    slopes += slope > 0 ? slope : 0;
  }
  if (!(constant > 0)) constant = 0;
  const bool close = constant + slopes < 1;
  for (;; tries.first += static_cast<uint64_t>(2 + (at.channels + 1) / 2)) {
    const Philox4 words = tries.words(0);
    const double u = uniform_open_double(words.v[0], words.v[1]);
    double choice = uniform_open_double(words.v[2], words.v[3]) * (constant + slopes) - constant;
    const DoublePair more = double_normals(tries.words(1));
    double sum = 0, envelope = constant;
    bool chosen = !close || choice < 0;
    for (int64_t d = 0; d < at.channels; d += 2) {
      const DoublePair pair = double_normals(tries.words(2 + d / 2));
      for (int64_t i = d; i < at.channels && i < d + 2; ++i) {
        double z = i == d ? pair.first : pair.second;
        const LogRatio t = log_ratio(at, i);
        const double slope = t.a + 0.5 * std::fabs(t.b);
        if (slope > 0) {
          choice -= slope;
          if (!chosen && choice < 0) {
            chosen = true;
            const double longer =
                std::sqrt(z * z + more.first * more.first + more.second * more.second);
            z = z < 0 ? -longer : longer;
          }
          envelope += slope * z * z;
        }
        sum += t.k + t.b * z + t.a * z * z;
        at.out[i] =
            static_cast<float>(at.p_mean[i] + static_cast<double>(at.p_std[i * at.p_step]) * z);
      }
    }
    // `chosen` fails by rounding of the sums only: then the try counts for nothing.
    if (chosen && u * (close ? envelope : 1.0) < -std::expm1(-sum)) return;
  }
}

PIXLEAP_HD inline bool accept_position(const GaussianPosition& at, uint64_t seed, uint64_t offset,
                                       uint64_t position) {
  const Philox4 words = philox4x32_10(seed, position, offset);
  const double log_u = std::log(uniform_open_double(words.v[0], words.v[1]));
  const GaussianTries tries{(static_cast<uint64_t>(words.v[2]) << 32) | words.v[3], position, 0};
  bool equal = true, apart = false;
  for (int64_t d = 0; d < at.channels; ++d) {
    const float p_std = at.p_std[d * at.p_step], q_std = at.q_std[d * at.q_step];
    equal = equal && p_std == q_std;
    // No common support, or a number that the draft cannot give: the target replaces it.
    if ((p_std == 0) != (q_std == 0)) apart = true;
    if (p_std == 0 && q_std == 0)
      apart = apart || at.p_mean[d] != at.q_mean[d] || at.x[d] != at.q_mean[d];
  }
  if (apart) {
    draw_target(at, tries);
    return false;
  }
  double sum = 0, dot = 0, norm = 0;
  for (int64_t d = 0; d < at.channels; ++d) {
    const double p_std = at.p_std[d * at.p_step], q_std = at.q_std[d * at.q_step];
    if (p_std == 0) continue;
    const double z = (static_cast<double>(at.x[d]) - at.q_mean[d]) / q_std;
    const double shift = (static_cast<double>(at.q_mean[d]) - at.p_mean[d]) / p_std;
    if (equal) {
      dot += z * shift;
      norm += shift * shift;
    } else {
      const double w = (static_cast<double>(at.x[d]) - at.p_mean[d]) / p_std;
      sum += 0.5 * (z * z - w * w) + std::log(q_std / p_std);
    }
  }
  if (equal) sum = -dot - 0.5 * norm;
  if (log_u < sum) {
    for (int64_t d = 0; d < at.channels; ++d) at.out[d] = at.x[d];
    return true;
  }
  if (!equal) {
    draw_residual(at, tries);
    return false;
  }
  // The mirror image of x in the plane half way between the means, in units of the deviations: the
  // residual's law, given that x was rejected.
  const double twice = 2 * dot / norm;
  for (int64_t d = 0; d < at.channels; ++d) {
    const double std = at.p_std[d * at.p_step];
    if (std == 0) {
      at.out[d] = at.p_mean[d];
      continue;
    }
    const double z = (static_cast<double>(at.x[d]) - at.q_mean[d]) / std;
    const double shift = (static_cast<double>(at.q_mean[d]) - at.p_mean[d]) / std;
    at.out[d] = static_cast<float>(at.p_mean[d] + std * (z - twice * shift));
  }
  return false;
}

PIXLEAP_HD inline GaussianPosition gaussian_position(const GaussianAcceptParams& p, int64_t i) {
  const int64_t b = i / p.length, l = i % p.length;
  const auto row = [&](const GaussianOperand& o) {
    return o.data + b * o.strides[0] + l * o.strides[1];
  };
  return {row(p.target_mean), row(p.target_std), row(p.draft_mean),       row(p.draft_std),
          row(p.x),           row(p.out),        p.target_std.strides[2], p.draft_std.strides[2],
          p.channels};
}

// Does position i unless something is wrong with it.
PIXLEAP_HD inline GaussianFault run_position(const GaussianAcceptParams& p, int64_t i) {
  const GaussianPosition at = gaussian_position(p, i);
  const GaussianFault fault = gaussian_fault(at);
  if (fault == GaussianFault::none)
    p.accepted[i] = accept_position(
        at, p.seed, p.offset,
        p.first_sample * static_cast<uint64_t>(p.length) + static_cast<uint64_t>(i));
  return fault;
}

}  // namespace
}  // namespace pixleap
