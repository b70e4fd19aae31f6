#include "ops/moments/moments.h"

#include "core/scratch.h"

namespace pixleap {
namespace {

constexpr KernelTable<MomentsParams> kernels = PIXLEAP_KERNELS_CUDA(moments);

}  // namespace

void moments(const Out& out, const View& a, const View& b) {
  const Check check("moments");
  check.dtype(a, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.value(a.ndim >= 1, "a", "at least 1 dimension", "a scalar");
  check.same_dtype(b, a);
  check.same_device(b, a);
  check.same_shape(b, a);
  check_samples(check, a);
  check_samples(check, b);
  check.dtype(out, {DType::f64});
  check.same_device(out, a);
  check.shape(out, {a.size(0), kMoments});
  check.contiguous(out);
  check.output(out);
  check.no_overlap(out, a, false);
  check.no_overlap(out, b, false);
  if (a.size(0) == 0) return;
  const SampleSums size = SampleSums::of(a);
  std::unique_ptr<double[]> partial;
  if (size.chunks > 1 && a.device.type == DeviceType::cpu)
    partial = scratch<double>(size.batch * size.chunks * kMoments);
  const MomentsParams p{a.dtype,     size,        a.data,           b.data,
                        a.stride(0), b.stride(0), out.as<double>(), partial.get()};
  kernels.run(check, p, a);
}

}  // namespace pixleap
