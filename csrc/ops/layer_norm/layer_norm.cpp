#include "ops/layer_norm/layer_norm.h"

#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<LayerNormParams> kernels = PIXLEAP_KERNELS_CUDA(layer_norm);

}  // namespace

void layer_norm(const Out& out, const View& x, const Optional& weight, const Optional& bias,
                const Optional& scale, const Optional& shift, double eps) {
  const Check check("layer_norm");
  check.dtype(x, {DType::f32, DType::bf16, DType::f16});
  check.ndim(x, 3);
  check.unit_last_stride(x);
  check.value(eps >= 0 && std::isfinite(eps), "eps", "a finite number >= 0", eps);
  check.dtype(out, {DType::f32, DType::bf16, DType::f16});
  check.same_device(out, x);
  check.same_shape(out, x);
  check.unit_last_stride(out);
  check.output(out);
  check.no_overlap(out, x, true);

  LayerNormParams p{};
  p.batch = x.size(0), p.length = x.size(1), p.channels = x.size(2);
  p.x = x.data, p.x_dtype = x.dtype;
  p.out = out.data, p.out_dtype = out.dtype;
  for (int i = 0; i < 2; ++i) p.x_strides[i] = x.strides[i], p.out_strides[i] = out.strides[i];
  const auto operand = [&](const Optional& v, bool per_batch) -> LayerNormOperand {
    if (!v.defined) return {};
    if (v.dtype != DType::f32) check.same_dtype(v, x);
    check.same_device(v, x);
    if (per_batch)
      check.shape(v, {p.batch, p.channels});
    else
      check.shape(v, {p.channels});
    check.unit_last_stride(v);
    check.no_overlap(out, v, false);
    return {v.data, v.dtype, per_batch ? v.stride(0) : 0};
  };
  p.weight = operand(weight, false);
  p.bias = operand(bias, false);
  p.scale = operand(scale, true);
  p.shift = operand(shift, true);
  p.eps = static_cast<float>(eps);
  if (out.numel() > 0) kernels.run(check, p, x);
}

}  // namespace pixleap
