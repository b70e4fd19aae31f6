#include "core/parallel.h"
#include "ops/linear_pack/linear_pack.h"
#include "simd/quantise.h"

namespace pixleap {
namespace {

// Where weight[16 p + n, k] goes inside its panel.
template <class P>
int64_t position(int64_t n, int64_t k) {
  if constexpr (sizeof(P) == 4) return k * kLinearPanel + n;
  return (k / 2 * kLinearPanel + n) * 2 + k % 2;
}

template <class T, class P>
void pack(const LinearPackParams& p) {
  const int64_t panels = (p.n + kLinearPanel - 1) / kLinearPanel;
  const int64_t depth = linear_padded_depth(p.packed_dtype, p.k);
  const int64_t grain = (1 << 15) / (depth * kLinearPanel) + 1;
  parallel_for(panels, grain, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      P* out = static_cast<P*>(p.packed) + panel * depth * kLinearPanel;
      // Blocks of k: the lines that 16 rows write to stay in the cache.
      for (int64_t k = 0; k < depth; k += VW) {
        for (int64_t n = 0; n < kLinearPanel; ++n) {
          const int64_t row = panel * kLinearPanel + n;
          vf w{};
          if (row < p.n && k < p.k)
            w = load_upto(static_cast<const T*>(p.weight) + row * p.stride + k,
                          p.k - k < VW ? p.k - k : VW);
          P lanes[VW];
          store(lanes, w);
          for (int64_t i = 0; i < VW && k + i < depth; ++i) out[position<P>(n, k + i)] = lanes[i];
        }
      }
    }
  });
}

template <class T>
void quantise(const LinearPackParams& p) {
  const int64_t panels = (p.n + kLinearPanel - 1) / kLinearPanel;
  const int64_t depth = linear_padded_depth(DType::i8, p.k);
  const int64_t grain = (1 << 15) / (depth * kLinearPanel + 1) + 1;
  parallel_for(panels, grain, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      int8_t* out = static_cast<int8_t*>(p.packed) + panel * depth * kLinearPanel;
      const T* rows = static_cast<const T*>(p.weight) + panel * kLinearPanel * p.stride;
      float divisors[kLinearPanel] = {};
      for (int64_t n = 0; n < kLinearPanel && panel * kLinearPanel + n < p.n; ++n)
        p.scales[panel * kLinearPanel + n] = row_scale(rows + n * p.stride, p.k, divisors[n]);
      for (int64_t k = 0; k < depth; k += VW) {
        for (int64_t n = 0; n < kLinearPanel; ++n) {
          int8_t lanes[VW] = {};
          if (divisors[n] > 0.f && k < p.k)
            round_lanes(
                load_upto(rows + n * p.stride + k, p.k - k < VW ? p.k - k : VW) / divisors[n],
                lanes);
          for (int64_t i = 0; i < VW && k + i < depth; i += 4)
            std::memcpy(out + ((k + i) / 4 * kLinearPanel + n) * 4, lanes + i, 4);
        }
      }
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(linear_pack)(const LinearPackParams& p) {
  with_float_type(p.dtype, [&]<class T>() {
    switch (p.packed_dtype) {
      case DType::f32:
        return pack<T, float>(p);
      case DType::bf16:
        return pack<T, bf16_t>(p);
      default:
        return quantise<T>(p);
    }
  });
}

}  // namespace pixleap
