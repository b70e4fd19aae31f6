#include "ops/lincomb/lincomb.h"

#include <algorithm>
#include <cmath>

namespace pixleap {
namespace {

constexpr KernelTable<LincombParams> kernels = PIXLEAP_KERNELS_CUDA(lincomb);
static_assert(sizeof(LincombParams) <= 4000, "what a CUDA kernel takes as arguments");

std::string matrix_text(int64_t m, int64_t n) {
  return std::to_string(m) + " x " + std::to_string(n) + " numbers";
}

void fill(LincombOperand& o, const View& v) {
  o.data = v.data;
  o.dtype = v.dtype;
  for (int i = 0; i < v.ndim; ++i) o.strides[i] = v.strides[i];
}

// A weight has the shape of the inputs (0 strides welcome) or of one sample.
void fill_weight(const Check& check, LincombOperand& o, const View& w, const View& like) {
  check.dtype(w, {DType::f32, DType::bf16, DType::f16, DType::f64});
  check.same_device(w, like);
  const int lead = like.ndim - w.ndim;
  bool fits = lead == 0 || (lead == 1 && like.ndim > 0);
  for (int i = 0; fits && i < w.ndim; ++i) fits = w.shape[i] == like.shape[i + lead];
  if (!fits) {
    View sample = like;
    sample.ndim = std::max(0, like.ndim - 1);
    for (int i = 0; i < sample.ndim; ++i) sample.shape[i] = like.shape[i + 1];
    check.value(false, w.name, "shape " + shape_string(sample) + " or " + shape_string(like),
                shape_string(w));
  }
  if (w.ndim > 0 && w.numel() > 0 && w.size(-1) > 1)
    check.value(w.stride(-1) == 1 || w.stride(-1) == 0, w.name,
                "stride 1 or 0 in the last dimension", "stride " + std::to_string(w.stride(-1)));
  fill(o, w);
  if (lead) {
    for (int i = w.ndim; i > 0; --i) o.strides[i] = w.strides[i - 1];
    o.strides[0] = 0;
  }
}

// The (B, ...) numbers of each sample.
void fill_table(const Check& check, LincombTable& t, const View& v, const View& like,
                std::initializer_list<int64_t> rest) {
  check.value(like.ndim >= 1, v.name, "none, as the inputs have no axis of samples",
              "shape " + shape_string(v));
  check.dtype(v, {DType::f32, DType::f64});
  check.same_device(v, like);
  const auto m = *rest.begin(), n = *(rest.end() - 1);
  if (rest.size() == 2)
    check.shape(v, {like.size(0), m, n});
  else
    check.shape(v, {like.size(0), m});
  t.data = v.data;
  t.dtype = v.dtype;
  for (int i = 0; i < v.ndim; ++i) t.strides[i] = v.strides[i];
}

bool any_nonzero(std::span<const double> numbers) {
  for (const double x : numbers)
    if (x != 0) return true;
  return false;
}

}  // namespace

void lincomb(std::span<const Out> out, std::span<const View> inputs,
             std::span<const double> coefficients, const Optional& sample_coefficients,
             std::span<const Optional> weights, double clamp, std::span<const double> noise_scale,
             const Optional& sample_noise_scale, int64_t seed, int64_t offset,
             int64_t first_element) {
  const Check check("lincomb");
  const size_t n = inputs.size(), m = out.size();
  const auto n_in = static_cast<int64_t>(n), n_out = static_cast<int64_t>(m);
  check.value(n_in >= 1 && n_in <= kLincombMaxInputs, "inputs", "1 to 16 arrays", n_in);
  check.value(n_out >= 1 && n_out <= kLincombMaxOutputs, "out", "1 to 4 arrays", n_out);
  const bool per_sample = sample_coefficients.defined;
  const auto size = static_cast<int64_t>(coefficients.size());
  if (!per_sample)
    check.value(size == n_in * n_out, "coefficients", matrix_text(n_out, n_in), size);
  const auto noises = static_cast<int64_t>(noise_scale.size());
  if (noises != 0 && noises != n_out)
    check.value(false, "noise_scale", std::to_string(n_out) + " numbers", noises);
  if (!weights.empty() && weights.size() != n)
    check.value(false, "weights", std::to_string(n_in) + " entries",
                static_cast<int64_t>(weights.size()));
  check.value(clamp >= 0, "clamp", "a limit >= 0", clamp);
  check.value(first_element >= 0, "first_element", "a number >= 0", first_element);

  const View& like = inputs[0];
  LincombParams p;
  int64_t* strides[2 * kLincombMaxInputs + kLincombMaxOutputs + 1];
  size_t operands = 0;
  p.dtype = like.dtype;
  p.f64_sums = false;
  const auto add = [&](LincombOperand& o, const View& v) {
    check.dtype(v, {DType::f32, DType::bf16, DType::f16, DType::f64});
    check.same_device(v, like);
    check.same_shape(v, like);
    check.unit_last_stride(v);
    if (v.dtype != p.dtype) p.dtype = DType::other;
    p.f64_sums |= v.dtype == DType::f64;
    fill(o, v);
    strides[operands++] = o.strides;
  };
  for (size_t i = 0; i < n; ++i) add(p.in[i], inputs[i]);
  for (size_t j = 0; j < m; ++j) {
    const View& o = out[j];
    add(p.out[j], o);
    check.output(o);
    for (const View& v : inputs) check.no_overlap(o, v, true);
    for (const View& v : weights) check.no_overlap(o, v, false);
    check.no_overlap(o, sample_coefficients, false);
    check.no_overlap(o, sample_noise_scale, false);
    for (size_t i = 0; i < j; ++i) check.no_overlap(o, out[i], false);
  }
  const size_t unit = operands;
  p.has_weights = false;
  for (size_t i = 0; i < n; ++i) {
    p.weights[i].data = nullptr;
    if (i >= weights.size() || !weights[i].defined) continue;
    fill_weight(check, p.weights[i], weights[i], like);
    p.has_weights = true;
    p.f64_sums |= weights[i].dtype == DType::f64;
    strides[operands++] = p.weights[i].strides;
  }
  p.sample_coefficients.data = p.sample_noise_scale.data = nullptr;
  if (per_sample)
    fill_table(check, p.sample_coefficients, sample_coefficients, like, {n_out, n_in});
  else
    for (size_t j = 0, k = 0; j < m; ++j)
      for (size_t i = 0; i < n; ++i) p.coefficients[j][i] = coefficients[k++];
  p.has_noise = any_nonzero(noise_scale);
  for (size_t j = 0; j < m; ++j) p.noise_scale[j] = noises ? noise_scale[j] : 0;
  if (sample_noise_scale.defined) {
    fill_table(check, p.sample_noise_scale, sample_noise_scale, like, {n_out});
    p.sample_noise_scale.strides[2] = 0;
    p.has_noise = true;
  }
  for (int i = 0; i < like.ndim; ++i) p.sample_strides[i] = 0;
  if (per_sample || sample_noise_scale.defined) {  // axis 0 stays apart, even from rows of its own
    p.sample_strides[0] = kLincombSampleStride;
    strides[operands++] = p.sample_strides;
  }
  if (like.numel() == 0) return;
  p.rows = Rows::of(like, {strides, operands}, unit);
  p.n_in = static_cast<int>(n_in);
  p.n_out = static_cast<int>(n_out);
  p.has_clamp = std::isfinite(clamp);
  p.clamp = clamp;
  p.seed = static_cast<uint64_t>(seed);
  p.offset = static_cast<uint64_t>(offset);
  p.first_element = static_cast<uint64_t>(first_element);
  kernels.run(check, p, like);
}

}  // namespace pixleap
