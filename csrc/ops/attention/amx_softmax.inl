// Scores with lanes of queries to bfloat16 weights, with the running maximum and sum of each query.
#include "ops/attention/amx_tiles.inl"

namespace pixleap {
namespace {

// 16 queries. `top` is what their scores are taken relative to: a maximum, not always the latest,
// since weights up to 2^kSlack do as well and spare the scaling of what is summed so far.
struct TileState {
  vf top, sum;
  int64_t seen[kTile], least, most;  // keys that each sees; the fewest and the most
  vi near_y, near_x;                 // of the neighbourhood, in the patch of keys
};
constexpr float kSlack = 8.f;

// 2^x and a little more, since weights lose the lower half of their bits: 1 + 2^-8 / (2 ln 2) makes
// that rounding by chance instead of always down (1 stays 1), at no instruction. What is left
// of the error is 7.5e-5 of the polynomial, a fiftieth of it. Zero for minus infinity.
PIXLEAP_INLINE vf weight_of(vf x) {
  const vf r = above_floor(x);
  vf y = fma(splat(7.8244364e-2f), r, splat(2.2670415e-1f));
  y = fma(y, r, splat(6.9779419e-1f));
  y = fma(y, r, splat(1.0027427f));
  return times_power(y, x);
}

// Pairs of rows of scores to rows of tiles: 16 keys with T tiles of queries. Sums are of the
// weights as they are multiplied. Values count in units of `factor` where there is one.
template <int T, bool Factor>
[[gnu::noinline]] void weigh(const float* s, const vf (&top)[T], float to_log2, const float* factor,
                             vf (&sum)[T], bf16_t* p) {
  const vf scale = splat(to_log2);
  for (int t = 0; t < T; ++t) {
    const float* from = s + t * kSumSize;
    bf16_t* to = p + t * kTileSize;
    const vf shift = top[t];
    vf total = sum[t];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kTile; j += 2) {
      const vf even = weight_of((load(from + j * VW) - shift) * scale);
      const vf odd = weight_of((load(from + (j + 1) * VW) - shift) * scale);
      vu both = upper_halves(bit_cast_to<vu>(even), bit_cast_to<vu>(odd));
      total = add_pairs(total, both);
      if constexpr (Factor)
        both = upper_halves(bit_cast_to<vu>(even * splat(factor[j])),
                            bit_cast_to<vu>(odd * splat(factor[j + 1])));
      std::memcpy(to + j * VW, &both, sizeof both);
    }
    sum[t] = total;
  }
}

// What the scores of 16 keys with 16 queries may need before their maximum is taken.
struct Adjustment {
  const AttentionParams& p;
  int64_t b, h, query, queries;  // the first, and how many
  float to_log2;
  bool near;
  AttentionPatch patch;
};

// Adds the mask of keys from `key` on to scores, which become units of ln 2.
void add_mask(const Adjustment& a, int64_t key, float* s) {
  const AttentionParams& p = a.p;
  const int64_t lanes = std::clamp<int64_t>(p.keys - key, 0, VW);
  vf rows[VW] = {};
  const auto read = [&]<class M>(const M* data) {
    data += a.b * p.mask_strides[0] + a.h * p.mask_strides[1];
    for (int64_t r = 0; r < VW && lanes; ++r)
      rows[r] = load_strided(data + (a.query + std::min(r, a.queries - 1)) * p.mask_strides[2] +
                                 key * p.mask_strides[3],
                             p.mask_strides[3], 0, lanes);
  };
  if (p.mask_dtype == DType::f32)
    read(static_cast<const float*>(p.mask));
  else
    read(static_cast<const bf16_t*>(p.mask));
  transpose(rows);
  for (int r = 0; r < VW; ++r)
    store(s + r * VW, fma(rows[r], splat(kLog2E), load(s + r * VW) * splat(a.to_log2)));
}

// Scores of 16 keys from `key` on: int8 keys take their scale, the mask is added, what is hidden
// becomes minus infinity.
[[gnu::noinline]] void adjust(const Adjustment& a, const TileState& state, int64_t key,
                              const float* factor, float* s) {
  if (factor)
    for (int r = 0; r < VW; ++r) store(s + r * VW, load(s + r * VW) * splat(factor[r]));
  if (a.p.mask) add_mask(a, key, s);
  if (a.near)
    for (int32_t r = 0; r < VW; ++r) {
      const auto y = static_cast<int32_t>((key + r) / a.patch.columns);
      const auto x = static_cast<int32_t>((key + r) % a.patch.columns);
      const vu rows = bit_cast_to<vu>(y - state.near_y),
               columns = bit_cast_to<vu>(x - state.near_x);
      const vi shown = (rows < static_cast<uint32_t>(a.p.window.near_rows)) &
                       (columns < static_cast<uint32_t>(a.p.window.near_columns));
      store(s + r * VW, select(shown, load(s + r * VW), splat(-kInfinity)));
    }
  if (state.least >= key + VW) return;
  vi seen;
  for (int i = 0; i < VW; ++i)
    seen[i] = static_cast<int32_t>(std::clamp<int64_t>(state.seen[i] - key, 0, VW));
  for (int32_t r = 0; r < VW; ++r)
    store(s + r * VW, select(seen > r, load(s + r * VW), splat(-kInfinity)));
}

PIXLEAP_INLINE vf larger_of_rows(vf top, const float* s) {
  vf odd = top;
#pragma GCC unroll 16
  for (int j = 0; j < VW; j += 2)
    top = vmax(top, load(s + j * VW)), odd = vmax(odd, load(s + (j + 1) * VW));
  return vmax(top, odd);
}

// Takes in the largest scores of a block of keys: `decay` is what sums so far are to be multiplied
// by, unless it is 1 for all. A NaN never becomes the maximum but stays a NaN weight.
PIXLEAP_INLINE bool raise_top(TileState& state, vf largest, float to_log2, vf& decay) {
  const vf slack = splat(std::min(kSlack / to_log2, 1e30f));
  const vi grown = largest > state.top + slack;
  if (!any(grown)) return false;
  vf exponent[] = {(state.top - largest) * splat(to_log2)};
  exp2_upto_one(exponent);
  decay = select(grown, exponent[0], splat(1.f));
  state.top = select(grown, largest, state.top);
  state.sum = state.sum * decay;
  return true;
}

}  // namespace
}  // namespace pixleap
