#include "ops/linear_pack/linear_pack.h"

namespace pixleap {
namespace {

constexpr KernelTable<LinearPackParams> kernels = PIXLEAP_KERNELS_CUDA(linear_pack);

}  // namespace

void check_packed(const Check& check, const View& packed, int64_t n, int64_t k) {
  check.dtype(packed, {DType::f32, DType::bf16, DType::i8});
  const int64_t panels = (n + kLinearPanel - 1) / kLinearPanel, steps = linear_steps(packed.dtype);
  if (steps == 1)
    check.shape(packed, {panels, k, kLinearPanel});
  else
    check.shape(packed, {panels, (k + steps - 1) / steps, kLinearPanel, steps});
  check.contiguous(packed);
}

void linear_pack(const Out& out, std::span<const Out> scales, const View& weight,
                 std::string_view dtype) {
  const Check check("linear_pack");
  check.value(dtype.empty() || dtype == "float32" || dtype == "bfloat16" || dtype == "int8",
              "dtype", "float32, bfloat16 or int8", std::string(dtype));
  check.dtype(weight, {DType::f32, DType::bf16, DType::f16});
  check.ndim(weight, 2);
  check.unit_last_stride(weight);
  if (!dtype.empty())
    check.dtype(out, {dtype == "float32"    ? DType::f32
                      : dtype == "bfloat16" ? DType::bf16
                                            : DType::i8});
  check.same_device(out, weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  check_packed(check, out, n, k);
  check.output(out);
  check.no_overlap(out, weight, false);
  const auto arrays = static_cast<int64_t>(scales.size());
  if (out.dtype == DType::i8)
    check.value(arrays == 1, "out", "the pair (packed, scales) for int8", "no scales");
  else
    check.value(arrays == 0, "out", "one array, as only int8 has scales", "a pair");
  for (const Out& s : scales) {
    check.dtype(s, {DType::f32});
    check.same_device(s, weight);
    check.shape(s, {n});
    check.contiguous(s);
    check.output(s);
    check.no_overlap(s, weight, false);
    check.no_overlap(s, out, false);
  }
  LinearPackParams p{weight.data, weight.stride(0), weight.dtype, n, k, out.data, out.dtype, {}};
  if (arrays) p.scales = scales[0].as<float>();
  if (n > 0 && (out.numel() > 0 || arrays)) kernels.run(check, p, weight);
}

}  // namespace pixleap
