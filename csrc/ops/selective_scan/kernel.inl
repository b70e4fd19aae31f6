#include "core/parallel.h"
#include "ops/selective_scan/selective_scan.h"
#include "simd/math.h"

namespace pixleap {
namespace {

constexpr int64_t kStates = kSelectiveScanStates;
constexpr int64_t kBlock = 32;  // channels of a task: whole cache lines of every row
constexpr int64_t kVectors = kBlock / VW;
constexpr int64_t kGrain = 1 << 12;  // steps of a state of a block per task
constexpr float kWithin = 87.f;

template <class T>
PIXLEAP_INLINE T* at(const SelectiveScanSequence& s, int64_t batch, int64_t step, int64_t i) {
  return static_cast<T*>(s.data) + batch * s.batch_stride + step * s.step_stride + i;
}

// log(1 + exp(x)), to a few units in the last place however small.
PIXLEAP_INLINE vf softplus(vf x) {
  const vf e = vexp(-vabs(x));
  const vf w = e + 1.f;
  return vmax(x, vf{}) + (vlog(w) + (e - (w - 1.f)) / w);  // what w has lost of e
}

// exp(x) for |x| <= kWithin, the bits of vexp: neither clamps nor a second factor are needed.
PIXLEAP_INLINE vf exp_within(vf x) {
  const vf magic = splat(12582912.f);
  const vf shifted = fma(x, splat(1.44269504f), magic);
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  const vf p = fma(exp_tail(r), r * r, r) + 1.f;
  return p * bit_cast_to<vf>((bit_cast_to<vi>(shifted) << 23) + 0x3f800000);
}

// (n channels, N) to N vectors of channels and back, a row of the array at a time.
void load_states(vf* to, const float* from, int64_t stride, int64_t n, int64_t states) {
  for (int64_t s = 0; s < states; ++s) to[s] = vf{};
  float* lanes = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < n && from; ++i)
    for (int64_t s = 0; s < states; ++s) lanes[s * VW + i] = from[i * stride + s];
}
void store_states(float* to, const vf* from, int64_t stride, int64_t n, int64_t states) {
  const float* lanes = reinterpret_cast<const float*>(from);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t s = 0; s < states; ++s) to[i * stride + s] = lanes[s * VW + i];
}

vf load_channels(const float* from, int64_t stride, int64_t begin, int64_t n) {
  vf v{};
  for (int64_t i = 0; i < n && from; ++i) v[i] = from[(begin + i) * stride];
  return v;
}

template <class T>
void load_row(float* to, const T* from, int64_t n) {
  for_each_vector(n, [&](int64_t i, int64_t m) { store(to + i, load_upto(from + i, m)); });
}

// One vector of channels: what stays the same over the steps.
struct Channels {
  vf d, bias, bound;  // bound: the largest |a| of a channel
};

// The states after one step; returns y without the skip.
template <bool Within>
PIXLEAP_INLINE vf step(vf* h, const vf* a, const float* b, const float* c, int64_t states, vf dt,
                       vf input) {
  vf y = vf{};
  for (int64_t s = 0; s < states; ++s) {
    const vf decay = Within ? exp_within(dt * a[s]) : vexp(dt * a[s]);
    h[s] = fma(decay, h[s], input * b[s]);
    y = fma(h[s], splat(c[s]), y);
  }
  return y;
}

// One batch entry, the `count` <= kBlock channels from e on, all steps. States: their number where
// it is known at compile time, else 0.
template <class T, int States>
void scan(const SelectiveScanParams& p, int64_t batch, int64_t e, int64_t count) {
  const int64_t states = States ? States : p.states, vectors = (count + VW - 1) / VW;
  constexpr int64_t kMost = (States ? States : kStates) * kVectors;
  vf h[kMost], a[kMost];
  float b[kStates], c[kStates];
  Channels channels[kVectors];
  float* final_state =
      p.final_state + batch * p.final_state_strides[0] + e * p.final_state_strides[1];
  const float* state =
      p.state ? p.state + batch * p.state_strides[0] + e * p.state_strides[1] : nullptr;
  for_each_vector(count, [&](int64_t i, int64_t n) {
    const int64_t k = i / VW, stride = p.state_strides[1];
    load_states(h + k * states, state ? state + i * stride : nullptr, stride, n, states);
    load_states(a + k * states, p.a + (e + i) * p.a_stride, p.a_stride, n, states);
    channels[k].d = load_channels(p.d, p.d_stride, e + i, n);
    channels[k].bias = load_channels(p.delta_bias, p.delta_bias_stride, e + i, n);
    channels[k].bound = vf{};
    for (int64_t s = 0; s < states; ++s)
      channels[k].bound = vmax(channels[k].bound, vabs(a[k * states + s]));
  });
  for (int64_t t = 0; t < p.length; ++t) {
    load_row(b, at<T>(p.b, batch, t, 0), states);
    load_row(c, at<T>(p.c, batch, t, 0), states);
    // Apart, so that the long chains of softplus and silu overlap between vectors.
    vf dt[kVectors], u[kVectors];
    for_each_vector(count, [&](int64_t i, int64_t n) {
      u[i / VW] = load_upto(at<T>(p.u, batch, t, e + i), n);
      const vf x = load_upto(at<T>(p.delta, batch, t, e + i), n) + channels[i / VW].bias;
      dt[i / VW] = p.delta_softplus ? softplus(x) : x;
    });
    vf y[kVectors];
    for (int64_t k = 0; k < vectors; ++k) {
      vf *own = h + k * states, *rates = a + k * states;
      const vf input = dt[k] * u[k];
      const bool within = !any(~(vabs(dt[k]) * channels[k].bound <= splat(kWithin)));
      y[k] = __builtin_expect(within, 1) ? step<true>(own, rates, b, c, states, dt[k], input)
                                         : step<false>(own, rates, b, c, states, dt[k], input);
    }
    for_each_vector(count, [&](int64_t i, int64_t n) {
      vf v = fma(channels[i / VW].d, u[i / VW], y[i / VW]);
      if (p.z.data) v = v * silu(load_upto(at<T>(p.z, batch, t, e + i), n));
      store_upto(at<T>(p.y, batch, t, e + i), v, n);
    });
  }
  for_each_vector(count, [&](int64_t i, int64_t n) {
    const int64_t stride = p.final_state_strides[1];
    store_states(final_state + i * stride, h + i / VW * states, stride, n, states);
  });
}

}  // namespace

void PIXLEAP_KERNEL(selective_scan)(const SelectiveScanParams& p) {
  const int64_t blocks = (p.channels + kBlock - 1) / kBlock;
  const int64_t grain = kGrain / ((p.length + 1) * (p.states + 1)) + 1;
  parallel_for(p.batch * blocks, grain, [&](int64_t first, int64_t last) {
    with_float_type(p.dtype, [&]<class T>() {
      for (int64_t i = first; i < last; ++i) {
        const int64_t batch = i / blocks, e = i % blocks * kBlock;
        const int64_t count = p.channels - e < kBlock ? p.channels - e : kBlock;
        p.states == 16 ? scan<T, 16>(p, batch, e, count) : scan<T, 0>(p, batch, e, count);
      }
    });
  });
}

}  // namespace pixleap
