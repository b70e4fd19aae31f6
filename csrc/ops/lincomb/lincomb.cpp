#include "ops/lincomb/lincomb.h"

#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<LincombParams> kernels = PIXLEAP_KERNELS_CUDA(lincomb);

LincombOperand operand(const View& v) {
  LincombOperand o{v.data, {}};
  for (int i = 0; i + 1 < v.ndim; ++i) o.strides[i] = v.strides[i];
  return o;
}

}  // namespace

void lincomb(std::span<const Out> out, std::span<const View> inputs,
             std::span<const double> coefficients, double clamp,
             std::span<const double> noise_scale, int64_t seed, int64_t offset) {
  const Check check("lincomb");
  const auto n_in = static_cast<int64_t>(inputs.size()), n_out = static_cast<int64_t>(out.size());
  check.value(n_in >= 1 && n_in <= kLincombMaxInputs, "inputs", "1 to 16 arrays", n_in);
  check.value(n_out >= 1 && n_out <= kLincombMaxOutputs, "out", "1 to 3 arrays", n_out);
  const auto size = static_cast<int64_t>(coefficients.size());
  check.value(size == n_in * n_out, "coefficients",
              std::to_string(n_out) + " x " + std::to_string(n_in) + " numbers", size);
  const auto noises = static_cast<int64_t>(noise_scale.size());
  check.value(noises == 0 || noises == n_out, "noise_scale", std::to_string(n_out) + " numbers",
              noises);
  check.value(clamp >= 0, "clamp", "a limit >= 0", clamp);

  const View& like = inputs[0];
  check.dtype(like, {DType::f32, DType::bf16, DType::f16, DType::f64});
  LincombParams p{};
  bool dense = true;
  const auto check_operand = [&](const View& v) {
    check.same_dtype(v, like);
    check.same_device(v, like);
    check.same_shape(v, like);
    check.unit_last_stride(v);
    dense = dense && v.is_contiguous();
  };
  for (int i = 0; i < n_in; ++i) {
    check_operand(inputs[static_cast<size_t>(i)]);
    p.in[i] = operand(inputs[static_cast<size_t>(i)]);
  }
  for (int j = 0; j < n_out; ++j) {
    const View& o = out[static_cast<size_t>(j)];
    check_operand(o);
    check.output(o);
    for (const View& v : inputs) check.no_overlap(o, v, true);
    for (int i = 0; i < j; ++i) check.no_overlap(o, out[static_cast<size_t>(i)], false);
    p.out[j] = operand(o);
  }
  for (int64_t j = 0; j < n_out; ++j) {
    for (int64_t i = 0; i < n_in; ++i)
      p.coefficients[j][i] = coefficients[static_cast<size_t>(j * n_in + i)];
    if (noises) p.noise_scale[j] = noise_scale[static_cast<size_t>(j)];
  }
  p.dtype = like.dtype;
  p.rows = Rows::of(like, dense);
  p.n_in = static_cast<int>(n_in);
  p.n_out = static_cast<int>(n_out);
  p.has_noise = noises > 0;
  p.has_clamp = std::isfinite(clamp);
  p.clamp = clamp;
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  if (like.numel() > 0) kernels.run(check, p, like);
}

}  // namespace pixleap
