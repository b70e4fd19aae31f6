#include "ops/selective_scan/selective_scan.h"

namespace pixleap {
namespace {

constexpr KernelTable<SelectiveScanParams> kernels = PIXLEAP_KERNELS_CUDA(selective_scan);

SelectiveScanSequence sequence(const View& v) {
  if (!v.defined) return {};
  return {v.data, v.stride(0), v.stride(1)};
}

}  // namespace

void selective_scan(const Out& y, const Out& final_state, const View& u, const View& delta,
                    const View& a, const View& b, const View& c, const Optional& d,
                    const Optional& z, const Optional& delta_bias, bool delta_softplus,
                    const Optional& state) {
  const Check check("selective_scan");
  check.dtype(u, {DType::f32, DType::bf16, DType::f16});
  check.ndim(u, 3);
  check.dtype(a, {DType::f32});
  check.shape(a, {u.size(2), -1});
  SelectiveScanParams p{};
  p.dtype = u.dtype, p.delta_softplus = delta_softplus;
  p.batch = u.size(0), p.length = u.size(1), p.channels = u.size(2), p.states = a.size(1);
  check.value(p.states <= kSelectiveScanStates, "a",
              "at most " + std::to_string(kSelectiveScanStates) + " states", p.states);

  const View* const sequences[] = {&u, &delta, &y, &z, &b, &c};
  for (const View* v : sequences) {
    if (!v->defined) continue;
    check.same_dtype(*v, u);
    if (v == &b || v == &c)
      check.shape(*v, {p.batch, p.length, p.states});
    else
      check.same_shape(*v, u);
  }
  const View* const vectors[] = {&d, &delta_bias};
  for (const View* v : vectors) {
    if (!v->defined) continue;
    check.dtype(*v, {DType::f32});
    check.shape(*v, {p.channels});
  }
  const View* const states[] = {&final_state, &state};
  for (const View* v : states) {
    if (!v->defined) continue;
    check.dtype(*v, {DType::f32});
    check.shape(*v, {p.batch, p.channels, p.states});
  }
  const View* const all[] = {&u, &delta, &a, &b, &c, &d, &z, &delta_bias, &state};
  for (const View* v : all) {
    if (!v->defined) continue;
    check.same_device(*v, u);
    if (v != &d && v != &delta_bias) check.unit_last_stride(*v);
    // A value is read just before the one at its place is written; the rest is read all along.
    check.no_overlap(y, *v, v == &u || v == &delta || v == &z);
    check.no_overlap(final_state, *v, v == &state);
  }
  for (const Out* v : {&y, &final_state}) {
    check.same_device(*v, u);
    check.unit_last_stride(*v);
    check.output(*v);
  }
  check.no_overlap(y, final_state, false);
  if (y.numel() == 0 && final_state.numel() == 0) return;

  p.y = sequence(y), p.u = sequence(u), p.delta = sequence(delta), p.z = sequence(z);
  p.b = sequence(b), p.c = sequence(c);
  p.a = a.as<float>(), p.a_stride = a.stride(0);
  p.d = d.as<float>(), p.d_stride = d.defined ? d.stride(0) : 0;
  p.delta_bias = delta_bias.as<float>();
  p.delta_bias_stride = delta_bias.defined ? delta_bias.stride(0) : 0;
  p.state = state.as<float>(), p.final_state = final_state.as<float>();
  for (int i = 0; i < 2; ++i) {
    if (state.defined) p.state_strides[i] = state.stride(i);
    p.final_state_strides[i] = final_state.stride(i);
  }
  kernels.run(check, p, u);
}

}  // namespace pixleap
