#include "ops/jacobi_update/jacobi_update.h"

namespace pixleap {
namespace {

constexpr KernelTable<JacobiUpdateParams> kernels = PIXLEAP_KERNELS_CUDA(jacobi_update);

JacobiOperand operand(const View& v) {
  if (!v.defined) return {};
  return {v.data, v.stride(0), v.stride(1)};
}

}  // namespace

void jacobi_update(const Out& x, const Out& change, const View& z, const View& a, const View& b,
                   const View& previous, const Optional& uncond_a, const Optional& uncond_b,
                   const Optional& guidance) {
  const Check check("jacobi_update");
  check.dtype(z, {DType::f32, DType::bf16, DType::f16});
  check.ndim(z, 3);
  const View* const arrays[] = {&z, &a, &b, &previous, &x, &uncond_a, &uncond_b};
  for (const View* v : arrays) {
    if (!v->defined) continue;
    check.same_dtype(*v, z);
    check.same_device(*v, z);
    check.same_shape(*v, z);
    check.unit_last_stride(*v);
  }
  check.dtype(change, {DType::f32});
  check.same_device(change, z);
  check.shape(change, {z.size(0), z.size(1)});
  const bool guided = uncond_a.defined || uncond_b.defined;
  check.value(
      guided == guidance.defined, "guidance",
      guided ? "(W,) numbers beside uncond_a or uncond_b" : "None without uncond_a, uncond_b",
      guided ? "None" : "an array");
  if (guided) {
    check.dtype(guidance, {DType::f32});
    check.same_device(guidance, z);
    check.shape(guidance, {z.size(1)});
  }
  check.output(x);
  check.output(change);
  for (const View* v : arrays)
    if (v != &x) check.no_overlap(x, *v, true);
  check.no_overlap(x, change, false);
  check.no_overlap(x, guidance, false);
  check.no_overlap(change, guidance, false);
  for (const View* v : arrays)
    if (v != &x) check.no_overlap(change, *v, false);
  if (z.size(0) == 0 || z.size(1) == 0) return;

  JacobiUpdateParams p{};
  p.dtype = z.dtype;
  p.batch = z.size(0), p.tokens = z.size(1), p.channels = z.size(2);
  p.x = operand(x), p.z = operand(z), p.a = operand(a), p.b = operand(b);
  p.previous = operand(previous), p.uncond_a = operand(uncond_a), p.uncond_b = operand(uncond_b);
  p.guidance = guidance.as<float>();
  p.guidance_stride = guidance.defined ? guidance.stride(0) : 0;
  p.change = change.as<float>();
  p.change_batch_stride = change.stride(0), p.change_token_stride = change.stride(1);
  kernels.run(check, p, z);
}

}  // namespace pixleap
