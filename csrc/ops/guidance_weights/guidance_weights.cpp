#include "ops/guidance_weights/guidance_weights.h"

#include <cmath>
#include <string>

#include "core/scratch.h"

namespace pixleap {
namespace {

constexpr KernelTable<GuidanceWeightsParams> kernels = PIXLEAP_KERNELS_CUDA(guidance_weights);

bool choice(const Check& check, const char* name, std::string_view value, std::string_view yes,
            std::string_view no) {
  check.value(value == yes || value == no, name, std::string(yes) + " or " + std::string(no),
              std::string(value));
  return value == yes;
}

}  // namespace

void guidance_weights(std::span<const Out> out, const View& cond, const Optional& uncond,
                      const Optional& average, double scale, const Optional& sample_scale,
                      std::string_view rule, double phi, double eta, double norm_threshold,
                      double momentum, std::string_view base, double slope) {
  const Check check("guidance_weights");
  GuidanceWeightsParams p{};
  p.rescale = choice(check, "rule", rule, "rescale", "projected");
  p.from_cond = choice(check, "base", base, "cond", "uncond");
  check.value(phi >= 0 && phi <= 1, "phi", "a number in [0, 1]", phi);
  check.value(eta >= 0 && eta <= 1, "eta", "a number in [0, 1]", eta);
  check.value(norm_threshold >= 0 && std::isfinite(norm_threshold), "norm_threshold",
              "a finite number >= 0", norm_threshold);
  check.value(std::isfinite(momentum), "momentum", "a finite number", momentum);
  check.value(std::isfinite(slope) && slope != 0, "slope", "a finite number other than 0", slope);
  check.value(std::isfinite(scale), "scale", "a finite number", scale);
  check.value(uncond.defined || average.defined, "uncond", "an array where average is None",
              "None");
  check.value(!p.rescale || (uncond.defined && !average.defined), "average",
              "uncond without average for the rule rescale",
              average.defined ? "average" : "no uncond");

  check.dtype(cond, {DType::f32, DType::bf16, DType::f16});
  check.value(cond.ndim >= 1, "cond", "at least 1 dimension", "a scalar");
  check_samples(check, cond);
  for (const Optional* v : {&uncond, &average}) {
    if (!v->defined) continue;
    check.same_dtype(*v, cond);
    check.same_device(*v, cond);
    check.same_shape(*v, cond);
    check_samples(check, *v);
  }
  if (sample_scale.defined) {
    check.dtype(sample_scale, {DType::f64});
    check.same_device(sample_scale, cond);
    check.shape(sample_scale, {cond.size(0)});
    check.contiguous(sample_scale);
  }
  const bool keeps = average.defined && uncond.defined;
  const size_t outputs = keeps ? 2 : 1;
  check.value(out.size() == outputs, "out", keeps ? "weights and the new average" : "weights alone",
              std::to_string(out.size()) + " arrays");
  const Out& weights = out[0];
  p.count = average.defined && (!uncond.defined || !p.from_cond) ? 3 : 2;
  check.dtype(weights, {DType::f64});
  check.same_device(weights, cond);
  check.shape(weights, {cond.size(0), p.count});
  check.contiguous(weights);
  check.output(weights);
  for (const View* v :
       {static_cast<const View*>(&cond), static_cast<const View*>(&uncond),
        static_cast<const View*>(&average), static_cast<const View*>(&sample_scale)})
    if (v->defined) check.no_overlap(weights, *v, false);
  if (keeps) {
    check.same_dtype(out[1], cond);
    check.same_device(out[1], cond);
    check.same_shape(out[1], cond);
    check_samples(check, out[1]);
    check.output(out[1]);
    check.no_overlap(out[1], cond, false);
    check.no_overlap(out[1], uncond, false);
    check.no_overlap(out[1], average, true);
    check.no_overlap(out[1], weights, false);
    if (sample_scale.defined) check.no_overlap(out[1], sample_scale, false);
  }
  if (cond.size(0) == 0) return;

  p.dtype = cond.dtype;
  p.size = SampleSums::of(cond);
  p.cond = cond.data, p.cond_stride = cond.stride(0);
  if (uncond.defined) p.uncond = uncond.data, p.uncond_stride = uncond.stride(0);
  if (average.defined) p.average = average.data, p.average_stride = average.stride(0);
  if (average.defined) {
    // Without uncond the average is read only; its address then says that there is one.
    const View& kept = keeps ? static_cast<const View&>(out[1]) : average;
    p.difference = kept.data, p.difference_stride = kept.stride(0);
  }
  p.out = weights.as<double>();
  p.scale = scale;
  p.sample_scale = sample_scale.defined ? sample_scale.as<double>() : nullptr;
  p.phi = phi, p.eta = eta, p.norm_threshold = norm_threshold;
  p.momentum = momentum, p.slope = slope;
  std::unique_ptr<double[]> sums;
  if (cond.device.type == DeviceType::cpu) {
    const int64_t chunks = p.size.chunks > 1 ? p.size.chunks : 0;
    sums = scratch<double>(p.size.batch * (1 + chunks) * kMoments);
    p.sums = sums.get();
    p.partial = p.sums + p.size.batch * kMoments;
  }
  kernels.run(check, p, cond);
}

}  // namespace pixleap
