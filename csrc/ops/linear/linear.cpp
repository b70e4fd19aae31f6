#include "ops/linear/linear.h"

namespace pixleap {
namespace {

constexpr KernelTable<LinearParams> kernels = PIXLEAP_KERNELS_AMX_CUDA(linear);

constexpr std::string_view kActivations[] = {"none", "gelu", "gelu_tanh", "silu"};

Activation activation_from(const Check& check, std::string_view name) {
  for (int i = 0; i < 4; ++i)
    if (name == kActivations[i]) return static_cast<Activation>(i);
  check.value(false, "activation", "one of none, gelu, gelu_tanh, silu", std::string(name));
  return Activation::none;
}

}  // namespace

void linear(const Out& out, const View& x, const View& packed, int64_t out_features,
            const Optional& scales, const Optional& bias, std::string_view activation,
            const Optional& gate, const Optional& residual) {
  const Check check("linear");
  LinearParams p{};
  p.activation = activation_from(check, activation);
  check.dtype(x, {DType::f32, DType::bf16, DType::f16});
  check.ndim(x, 3);
  check.unit_last_stride(x);
  check.value(out_features >= 0 && out_features <= int64_t{1} << 40, "out_features",
              "a number of features", out_features);
  p.batch = x.size(0), p.length = x.size(1), p.k = x.size(2), p.n = out_features;

  check.same_device(packed, x);
  check_packed(check, packed, p.n, p.k);
  const bool quantised = packed.dtype == DType::i8;
  check.value(scales.defined == quantised, "scales",
              quantised ? "the scales of int8 weights" : "None, as only int8 weights have scales",
              std::string(quantised ? "None" : "an array"));

  check.dtype(out, {DType::f32, DType::bf16, DType::f16});
  check.same_device(out, x);
  check.shape(out, {p.batch, p.length, p.n});
  check.unit_last_stride(out);
  check.output(out);
  check.no_overlap(out, x, false);
  check.no_overlap(out, packed, false);

  const auto parameter = [&](const View& v, const void*& data, DType& dtype) {
    if (v.dtype != DType::f32) check.same_dtype(v, x);
    check.same_device(v, x);
    check.unit_last_stride(v);
    check.no_overlap(out, v, false);
    data = v.data, dtype = v.dtype;
  };
  if (scales.defined) {
    check.dtype(scales, {DType::f32});
    check.same_device(scales, x);
    check.shape(scales, {p.n});
    check.contiguous(scales);
    check.no_overlap(out, scales, false);
    p.scales = scales.as<const float>();
  }
  if (bias.defined) {
    check.shape(bias, {p.n});
    parameter(bias, p.bias, p.bias_dtype);
  }
  if (gate.defined) {
    check.shape(gate, {p.batch, p.n});
    parameter(gate, p.gate, p.gate_dtype);
    p.gate_stride = gate.stride(0);
  }
  if (residual.defined) {
    check.same_dtype(residual, out);
    check.same_device(residual, x);
    check.same_shape(residual, out);
    check.unit_last_stride(residual);
    check.no_overlap(out, residual, true);
    p.residual = residual.data;
  }
  p.x = x.data, p.x_dtype = x.dtype;
  p.packed = packed.data, p.packed_dtype = packed.dtype;
  p.out = out.data, p.out_dtype = out.dtype;
  for (int i = 0; i < 2; ++i) {
    p.x_strides[i] = x.strides[i];
    p.out_strides[i] = out.strides[i];
    if (residual.defined) p.residual_strides[i] = residual.strides[i];
  }
  if (out.numel() > 0) kernels.run(check, p, x);
}

}  // namespace pixleap
