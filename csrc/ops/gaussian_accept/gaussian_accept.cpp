#include "ops/gaussian_accept/gaussian_accept.h"

#include <atomic>
#include <limits>

#include "core/parallel.h"
#include "ops/gaussian_accept/position.h"

namespace pixleap {
namespace {

constexpr int64_t kSound = std::numeric_limits<int64_t>::max();

void gaussian_accept_cpu(const GaussianAcceptParams& p) {
  std::atomic<int64_t> bad{kSound};
  const int64_t grain = (1 << 12) / (p.channels + 8) + 1;
  parallel_for(p.batch * p.length, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const GaussianFault fault = run_position(p, i);
      if (fault == GaussianFault::none) continue;
      const int64_t code = i * 8 + static_cast<int64_t>(fault);
      int64_t seen = bad.load();
      while (code < seen && !bad.compare_exchange_weak(seen, code)) {
      }
    }
  });
  *p.bad = bad;
}

constexpr KernelTable<GaussianAcceptParams> kernels = {
    {gaussian_accept_cpu, nullptr, nullptr, nullptr}, PIXLEAP_CUDA_KERNEL(gaussian_accept)};

GaussianOperand operand(const View& v) {
  const bool one = v.ndim == 3 && v.size(2) == 1;
  return {v.as<float>(), {v.stride(0), v.stride(1), one ? 0 : v.stride(2)}};
}

}  // namespace

void gaussian_accept(const Out& out, const Out& accepted, const View& target_mean,
                     const View& target_std, const View& draft_mean, const View& draft_std,
                     const View& x, int64_t seed, int64_t offset, int64_t first_sample) {
  const Check check("gaussian_accept");
  check.dtype(x, {DType::f32});
  check.ndim(x, 3);
  const View* const means[] = {&x, &target_mean, &draft_mean, &out};
  for (const View* v : means) {
    check.same_dtype(*v, x);
    check.same_device(*v, x);
    check.same_shape(*v, x);
    check.unit_last_stride(*v);
  }
  const int64_t batch = x.size(0), length = x.size(1), channels = x.size(2);
  const View* const deviations[] = {&target_std, &draft_std};
  for (const View* v : deviations) {
    check.same_dtype(*v, x);
    check.same_device(*v, x);
    check.shape(*v, {batch, length, v->ndim == 3 && v->size(2) == 1 ? 1 : channels});
    if (v->size(2) > 1 && v->stride(2) != 0) check.unit_last_stride(*v);
  }
  check.dtype(accepted, {DType::boolean});
  check.same_device(accepted, x);
  check.shape(accepted, {batch, length});
  check.contiguous(accepted);
  check.output(out);
  check.output(accepted);
  for (const View* v : means) {
    if (v != &out) check.no_overlap(out, *v, v == &x);
    check.no_overlap(accepted, *v, false);
  }
  for (const View* v : deviations) {
    check.no_overlap(out, *v, false);
    check.no_overlap(accepted, *v, false);
  }
  check.value(first_sample >= 0, "first_sample", "a number >= 0", first_sample);
  if (batch == 0 || length == 0) return;

  int64_t bad = kSound;
  GaussianAcceptParams p{};
  p.batch = batch, p.length = length, p.channels = channels;
  p.target_mean = operand(target_mean), p.target_std = operand(target_std);
  p.draft_mean = operand(draft_mean), p.draft_std = operand(draft_std);
  p.x = operand(x), p.out = operand(out);
  p.accepted = accepted.as<bool>();
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  p.first_sample = static_cast<uint64_t>(first_sample);
  p.bad = &bad;
  kernels.run(check, p, x);
  if (bad == kSound) return;
  const View* const arrays[] = {&target_mean, &target_std, &draft_mean, &draft_std, &x};
  const int64_t fault = bad % 8, position = bad / 8;
  check.value(false, arrays[fault]->name,
              fault == 1 || fault == 3 ? "finite numbers >= 0" : "finite numbers",
              "others at sample " + std::to_string(position / length) + ", position " +
                  std::to_string(position % length));
}

}  // namespace pixleap
