#include "ops/next_scale_update/next_scale_update.h"

#include <cmath>
#include <vector>

#include "core/tokens.h"
#include "ops/next_scale_update/upsample.h"

namespace pixleap {
namespace {

constexpr KernelTable<NextScaleUpdateParams> kernels = PIXLEAP_KERNELS_CUDA(next_scale_update);

void copy_strides(const View& v, int count, int64_t* strides) {
  for (int i = 0; i < count; ++i) strides[i] = v.strides[i];
}

// -1 where count is not a square number.
int64_t square_root(int64_t count) {
  const auto root = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(count))));
  return root * root == count ? root : -1;
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
  for (int64_t y = 0; y < height; ++y) make_terms(height, side, y, terms[static_cast<size_t>(y)]);
  NextScaleUpdateParams p{};
  p.terms = terms.data();
  p.tokens = tokens.as<const int64_t>();
  p.codebook = codebook.as<const float>();
  p.phi_weight = phi_weight.as<const float>();
  p.phi_bias = phi_bias.as<const float>();
  p.f_hat = f_hat.as<const float>();
  p.f_hat_new = f_hat_new.as<float>();
  p.next_input = next_input.as<float>();
  p.vocabulary = codebook.size(0);
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
