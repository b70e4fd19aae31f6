#include "ops/linear_pack/linear_pack.h"

namespace pixleap {
namespace {

constexpr KernelTable<LinearPackParams> kernels = PIXLEAP_KERNELS(linear_pack);

}  // namespace

void linear_pack(const Out& out, const View& weight, std::string_view dtype) {
  const Check check("linear_pack");
  check.value(dtype.empty() || dtype == "float32" || dtype == "bfloat16", "dtype",
              "float32 or bfloat16", std::string(dtype));
  check.dtype(weight, {DType::f32, DType::bf16, DType::f16});
  check.ndim(weight, 2);
  check.unit_last_stride(weight);
  if (dtype.empty())
    check.dtype(out, {DType::f32, DType::bf16});
  else
    check.dtype(out, {dtype == "float32" ? DType::f32 : DType::bf16});
  check.same_device(out, weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t panels = (n + kLinearPanel - 1) / kLinearPanel;
  if (out.dtype == DType::f32)
    check.shape(out, {panels, k, kLinearPanel});
  else
    check.shape(out, {panels, (k + 1) / 2, kLinearPanel, 2});
  check.contiguous(out);
  check.output(out);
  check.no_overlap(out, weight, false);
  const LinearPackParams p{weight.data, weight.stride(0), weight.dtype, n, k, out.data, out.dtype};
  if (out.numel() > 0) kernels.run(check, p, weight);
}

}  // namespace pixleap
