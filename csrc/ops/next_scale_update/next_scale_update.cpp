#include "ops/next_scale_update/next_scale_update.h"

#include <cmath>
#include <vector>

#include "core/tokens.h"

namespace pixleap {
namespace {

constexpr KernelTable<NextScaleUpdateParams> kernels = PIXLEAP_KERNELS(next_scale_update);

void copy_strides(const View& v, int count, int64_t* strides) {
  for (int i = 0; i < count; ++i) strides[i] = v.strides[i];
}

// -1 where count is not a square number.
int64_t square_root(int64_t count) {
  const auto root = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(count))));
  return root * root == count ? root : -1;
}

void add_term(UpsampleTerms& t, int tap, int64_t at, double weight) {
  for (int i = 0; i < t.count; ++i)
    if (t.term[i].tap == tap && t.term[i].at == at) {
      t.term[i].weight += static_cast<float>(weight);  // taps clamped to the border
      return;
    }
  t.term[t.count++] = {tap, static_cast<int32_t>(at), static_cast<float>(weight)};
}

// Keys' cubic convolution kernel with A = -0.75 at distance d from the sample.
double cubic(double d) {
  constexpr double a = -0.75;
  d = d < 0 ? -d : d;
  if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
  return 0;
}

void make_terms(int64_t height, int64_t side, UpsampleTerms* terms) {
  for (int64_t y = 0; y < height; ++y) {
    UpsampleTerms& t = terms[y];
    t.count = 0;
    for (int tap = 0; tap < 3; ++tap) {
      const int64_t up = y + tap - 1;
      if (up < 0 || up >= height) continue;
      if (side == height) {
        add_term(t, tap, up, 1);
        continue;
      }
      const double position = (static_cast<double>(up) + 0.5) * static_cast<double>(side) /
                                  static_cast<double>(height) -
                              0.5;
      const double base = std::floor(position);
      for (int j = -1; j <= 2; ++j) {
        const int64_t at = static_cast<int64_t>(base) + j;
        add_term(t, tap, at < 0 ? 0 : at >= side ? side - 1 : at, cubic(position - (base + j)));
      }
    }
  }
}

}  // namespace

void next_scale_update(const Out& f_hat_new, const Out& next_input, const View& tokens,
                       const View& codebook, const View& phi_weight, const View& phi_bias,
                       const View& f_hat, int64_t next_size, double phi_ratio) {
  const Check check("next_scale_update");
  const View* floats[] = {&f_hat, &codebook, &phi_weight, &phi_bias, &f_hat_new, &next_input};
  for (const View* v : floats) {
    check.dtype(*v, {DType::f32});
    check.same_device(*v, f_hat);
  }
  check.dtype(tokens, {DType::i64});
  check.same_device(tokens, f_hat);
  check.ndim(f_hat, 4);
  const int64_t batch = f_hat.size(0), channels = f_hat.size(1), height = f_hat.size(2);
  check.shape(f_hat, {batch, channels, height, height});
  check.unit_last_stride(f_hat);
  check.shape(tokens, {batch, -1});
  const int64_t side = square_root(tokens.size(1));
  check.value(side >= 1 && side <= height, "tokens",
              "n * n tokens per sample, n from 1 to " + std::to_string(height), tokens.size(1));
  check.shape(codebook, {-1, channels});
  check.unit_last_stride(codebook);
  check.shape(phi_weight, {channels, channels, 3, 3});
  check.contiguous(phi_weight);
  check.shape(phi_bias, {channels});
  check.contiguous(phi_bias);
  check.value(next_size >= 0 && next_size <= height, "next_size", "0 to " + std::to_string(height),
              next_size);
  check.value(std::isfinite(phi_ratio), "phi_ratio", "a finite number", phi_ratio);
  check.same_shape(f_hat_new, f_hat);
  check.shape(next_input, {batch, next_size * next_size, channels});
  for (const View* v :
       {static_cast<const View*>(&f_hat_new), static_cast<const View*>(&next_input)}) {
    check.unit_last_stride(*v);
    check.output(*v);
    check.no_overlap(*v, f_hat, v == &f_hat_new);
    for (const View* in : {&tokens, &codebook, &phi_weight, &phi_bias})
      check.no_overlap(*v, *in, false);
  }
  check.no_overlap(f_hat_new, next_input, false);
  if (f_hat.numel() == 0) return;
  if (tokens.device.type == DeviceType::cpu) check_tokens(check, tokens, codebook.size(0));

  std::vector<UpsampleTerms> terms(static_cast<size_t>(height));
  make_terms(height, side, terms.data());
  NextScaleUpdateParams p{};
  p.terms = terms.data();
  p.tokens = tokens.as<const int64_t>();
  p.codebook = codebook.as<const float>();
  p.phi_weight = phi_weight.as<const float>();
  p.phi_bias = phi_bias.as<const float>();
  p.f_hat = f_hat.as<const float>();
  p.f_hat_new = f_hat_new.as<float>();
  p.next_input = next_input.as<float>();
  p.batch = batch;
  p.channels = channels;
  p.height = height;
  p.side = side;
  p.next_side = next_size;
  copy_strides(tokens, 2, p.tokens_strides);
  p.codebook_stride = codebook.stride(0);
  copy_strides(f_hat, 3, p.f_strides);
  copy_strides(f_hat_new, 3, p.f_new_strides);
  copy_strides(next_input, 2, p.next_strides);
  p.phi_ratio = static_cast<float>(phi_ratio);
  kernels.run(check, p, f_hat);
}

}  // namespace pixleap
