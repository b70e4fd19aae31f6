#include <math.h>  // ::log: an overload of std could leave a weak symbol

#include <cstdlib>
#include <new>

#include "core/parallel.h"
#include "core/philox.h"
#include "ops/sample_tokens/sample_tokens.h"
#include "ops/sample_tokens/threshold.inl"
#include "simd/math.h"
#include "simd/philox.h"

namespace pixleap {
namespace {

constexpr int64_t kTaskElements = 1 << 15;

// Scratch of one task; every array holds one row and padding.
struct Scratch {
  char* memory;
  float *x, *w, *candidate_x, *candidate_w;
  int32_t* ids;
  uint32_t *words, *kept_words;

  explicit Scratch(int64_t vocabulary) {
    const int64_t row = (vocabulary + 4 * VW + 16) / 16 * 16 + 16;
    memory = static_cast<char*>(std::malloc(static_cast<size_t>(row) * 4 * 7 + 64));
    if (!memory) throw std::bad_alloc();
    auto* next = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~63ull);
    x = next, w = next + row, candidate_x = next + 2 * row, candidate_w = next + 3 * row;
    ids = reinterpret_cast<int32_t*>(next + 4 * row);
    words = reinterpret_cast<uint32_t*>(next + 5 * row);
    kept_words = reinterpret_cast<uint32_t*>(next + 6 * row);
  }
  // Not a destructor: unwinding would need a weak symbol, and nothing between the two throws.
  void release() const { std::free(memory); }
};

// The guided logits of a row, NaN as -inf.
template <class T>
Range load_row(const SampleTokensParams& p, const T* cond, const T* uncond, float* x) {
  const vf scale = splat(p.guidance_scale), rest = splat(1.f - p.guidance_scale);
  const vf lowest = splat(-kInf), highest = splat(kInf);
  vf low = highest, high = lowest;
  vi impossible{};
  for_each_vector(p.vocabulary, [&](int64_t i, int64_t lanes) {
    vf v = load_upto(cond + i, lanes);
    if (uncond) v = fma(scale, v, rest * load_upto(uncond + i, lanes));
    v = v + 0.f;  // -0 and 0 are one value
    v = select(v >= lowest, v, lowest);
    if (lanes < VW) {
      // Extra lanes take the row's first value: it changes neither minimum nor maximum.
      store_n(x + i, v, lanes);
      const float first = i ? x[0] : v[0];
      for (int64_t j = lanes; j < VW; ++j) v[j] = first;
      const vi none = v == lowest;
      for (int64_t j = 0; j < lanes; ++j) impossible[j] -= none[j];
    } else {
      store(x + i, v);
      impossible -= v == lowest;
    }
    high = vmax(high, v);
    low = vmin(low, select(v == lowest, highest, v));
  });
  pad(x, p.vocabulary);
  int64_t count = 0;
  for (int i = 0; i < VW; ++i) count += impossible[i];
  return {-reduce_max(-low), reduce_max(high), count};
}

int64_t first_equal(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == value) return i;
  return 0;
}

// Random words of the elements first + ids[i].
void sparse_words(const SampleTokensParams& p, uint64_t first, const int32_t* ids, int64_t n,
                  uint32_t* words) {
  const uint32_t shift = static_cast<uint32_t>(first % 4);
  const uint64_t group = first / 4;
  for (int64_t i = 0; i < n; i += VW) {
    vu element{};
    std::memcpy(&element, ids + i, static_cast<size_t>(n - i < VW ? n - i : VW) * sizeof(int32_t));
    element += shift;
    const vu local = element >> 2, lane = element & 3u;
    const vu low = local + static_cast<uint32_t>(group);
    const vu high = static_cast<uint32_t>(group >> 32) - bit_cast_to<vu>(low < local);
    const PhiloxVectors r = philox_vectors(p.seed, p.offset, low, high);
    const vu even = (lane & 2u) ? r.v[2] : r.v[0], odd = (lane & 2u) ? r.v[3] : r.v[1];
    const vu word = (lane & 1u) ? odd : even;
    std::memcpy(words + i, &word, sizeof word);
  }
}

// Position of the largest (x - top) / T + gumbel; the lowest one on ties.
// With E = -log(u) a token wins only if E < exp(y), y = (x - top) / T - best. As 1 - u <= E, and
// 2^floor(t) (1 + t - floor(t)) >= 2^t is a matter of a conversion to integer, most vectors are
// passed over without a logarithm. The slack is far above the rounding of all these.
int64_t draw(const float* x, int64_t n, const uint32_t* words, float top, float inverse) {
  constexpr float kSlack = 1e-3f, kLog2e = 1.44269504f;
  float best = -kInf;
  int64_t position = 0;
  vf shift = splat(kInf);  // slack - best
  for (int64_t i = 0; i < n; i += VW) {
    vu word;
    std::memcpy(&word, words + i, sizeof word);
    const vf u = uniform_open_vector(word), logit = (load(x + i) - top) * inverse;
    const vf t = vmin(vmax((logit + shift) * kLog2e, splat(-126.f)), splat(1.f));
    const vf bound = bit_cast_to<vf>(__builtin_convertvector((t + 127.f) * 0x1p23f, vi));
    if (!lane_bits(1.f - u <= bound)) continue;  // as the padding does: NaN
    const vf score = logit - vlog(-vlog(u));
    for (int64_t lane = 0; lane < VW; ++lane)
      if (score[lane] > best) best = score[lane], position = i + lane;
    shift = splat(kSlack - best);
  }
  return position;
}

// The same in float64. The word above bounds u from either side: 1 - u is at least the upper 24
// bits of its complement, so that the word below and the logarithms are made for the few candidates
// only. Element i is first + ids[i], or first + i without ids.
int64_t draw_double(const SampleTokensParams& p, uint64_t first, const int32_t* ids, const float* x,
                    int64_t n, const uint32_t* words, float top) {
  constexpr float kSlack = 1e-3f, kLog2e = 1.44269504f;
  const double inverse = static_cast<double>(p.inverse_temperature);
  double best = -static_cast<double>(kInf);
  int64_t position = 0;
  vf shift = splat(kInf);  // slack - best
  for (int64_t i = 0; i < n; i += VW) {
    vu word;
    std::memcpy(&word, words + i, sizeof word);
    const vf rest = __builtin_convertvector(bit_cast_to<vi>(~word >> 8), vf) * 0x1p-24f;
    const vf logit = (load(x + i) - top) * p.inverse_temperature;
    const vf t = vmin(vmax((logit + shift) * kLog2e, splat(-126.f)), splat(1.f));
    const vf bound = bit_cast_to<vf>(__builtin_convertvector((t + 127.f) * 0x1p23f, vi));
    uint32_t bits = lane_bits((rest <= bound) & (logit == logit));  // the padding is NaN
    if (!bits) continue;
    for (; bits; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctz(bits);
      const uint64_t element = first + static_cast<uint64_t>(ids ? ids[at] : at);
      const Philox4 low = philox4x32_10(p.seed, element / 4 + kLowWordGroups, p.offset);
      const double u = uniform_open_double(words[at], low.v[element % 4]);
      const double score =
          (static_cast<double>(x[at]) - static_cast<double>(top)) * inverse - log(-log(u));
      if (score > best) best = score, position = at;
    }
    shift = splat(kSlack - static_cast<float>(best));
  }
  return position;
}

// What the filters leave of a row: scratch x[0, n), with its tokens in ids if has_ids.
struct Kept {
  int64_t n;
  bool has_ids;
  float top;     // largest value
  int64_t only;  // the token that has all the probability, else -1
};

template <class T>
Kept filter_row(const SampleTokensParams& p, const T* cond, const T* uncond, const Scratch& s) {
  int64_t n = p.vocabulary;
  Range range = load_row(p, cond, uncond, s.x);
  if (range.high == -kInf) return {n, false, range.high, 0};
  if (p.greedy || range.high == kInf)
    return {n, false, range.high, first_equal(s.x, n, range.high)};
  bool has_ids = false;
  if (p.top_k > 0 && p.top_k < n - range.impossible) {
    const auto impossible = static_cast<double>(range.impossible);
    const Threshold kth =
        find_threshold<false>(s.x, nullptr, n, range, impossible, static_cast<double>(n - p.top_k),
                              s.candidate_x, nullptr);
    n = keep_from<false>(s.x, s.ids, n, kth.value, 0);
    range.low = kth.value;
    has_ids = true;
  }
  if (p.top_p < 1) {
    const vf top = splat(range.high), inverse = splat(p.inverse_temperature);
    for (int64_t i = 0; i < n; i += VW) store(s.w + i, vexp((load(s.x + i) - top) * inverse));
    pad(s.w, n);
    const double total = weight_within<true>(s.x, s.w, n, -kInf, range.high);
    const double limit = (1 - p.top_p) * total;
    const Threshold nucleus =
        find_threshold<true>(s.x, s.w, n, range, 0, limit, s.candidate_x, s.candidate_w);
    // Of tokens that tie at the threshold, those that still fit under the limit go, lowest first.
    int64_t ties = 0;
    for (int64_t i = 0; i < n; ++i) ties += s.x[i] == nucleus.value;
    int64_t skip = 0;
    if (ties > 1) {
      const vf weight = vexp((splat(nucleus.value) - top) * inverse);
      const double fitting = (limit - nucleus.below) / static_cast<double>(weight[0]);
      skip = fitting >= static_cast<double>(ties - 1) ? ties - 1 : static_cast<int64_t>(fitting);
    }
    n = has_ids ? keep_from<true>(s.x, s.ids, n, nucleus.value, skip)
                : keep_from<false>(s.x, s.ids, n, nucleus.value, skip);
    has_ids = true;
  }
  return {n, has_ids, range.high, n > 1 ? -1 : has_ids ? s.ids[0] : 0};
}

// One random word per kept token, in the order of x.
const uint32_t* kept_words(const SampleTokensParams& p, uint64_t first, const Kept& k,
                           const Scratch& s) {
  const uint32_t* words = s.kept_words;
  if (!k.has_ids || 4 * k.n > p.vocabulary) {  // one group has the words of four neighbours
    philox_words(p.seed, p.offset, first, p.vocabulary, s.words);
    words = s.words + first % 4;
    if (k.has_ids) {
      for (int64_t i = 0; i < k.n; ++i) s.kept_words[i] = words[s.ids[i]];
      words = s.kept_words;
    }
  } else {
    sparse_words(p, first, s.ids, k.n, s.kept_words);
  }
  return words;
}

// Scratch w = exp((x - top) / T) of the kept; returns their sum.
double weigh(const SampleTokensParams& p, const Kept& k, const Scratch& s) {
  const vf top = splat(k.top), inverse = splat(p.inverse_temperature);
  for (int64_t i = 0; i < k.n; i += VW) store(s.w + i, vexp((load(s.x + i) - top) * inverse));
  return weight_within<true>(s.x, s.w, k.n, -kInf, k.top);
}

// Scratch w = exp((y - max y) / tau), y = logit_scale (x - top) + gumbel; returns their sum.
double weigh_gumbel(const SampleTokensParams& p, const Kept& k, const uint32_t* words,
                    const Scratch& s) {
  const vf scale = splat(p.logit_scale), inverse = splat(p.inverse_softmax_temperature);
  vf most = splat(-kInf);
  for (int64_t i = 0; i < k.n; i += VW) {
    vu word;
    std::memcpy(&word, words + i, sizeof word);
    const vf logit = (load(s.x + i) - k.top) * scale;
    const vf y = logit - vlog(-vlog(uniform_open_vector(word)));
    store(s.w + i, y);
    most = vmax(most, select(y == y, y, most));
  }
  const vf highest = splat(reduce_max(most));
  for (int64_t i = 0; i < k.n; i += VW) store(s.w + i, vexp((load(s.w + i) - highest) * inverse));
  return weight_within<true>(s.x, s.w, k.n, -kInf, k.top);
}

PIXLEAP_INLINE void fill(float* out, int64_t n, float value) {
  for_each_vector(n, [&](int64_t i, int64_t lanes) { store_upto(out + i, splat(value), lanes); });
}

// The whole row from the weights of the kept, or from their logarithms.
void write_all(const SampleTokensParams& p, const Kept& k, double total, float* out,
               const Scratch& s) {
  const bool log_all = p.log_all;
  const float none = log_all ? -kInf : 0.f;
  if (k.only >= 0) {
    fill(out, p.vocabulary, none);
    out[k.only] = log_all ? 0.f : 1.f;
    return;
  }
  const vf factor = splat(static_cast<float>(1 / total)), top = splat(k.top);
  const vf shift = splat(static_cast<float>(log(total))), inverse = splat(p.inverse_temperature);
  float* to = k.has_ids ? s.w : out;
  for_each_vector(k.n, [&](int64_t i, int64_t lanes) {
    const vf v = log_all ? (load(s.x + i) - top) * inverse - shift : load(s.w + i) * factor;
    k.has_ids ? store(to + i, v) : store_upto(to + i, v, lanes);
  });
  if (!k.has_ids) return;
  fill(out, p.vocabulary, none);
  for (int64_t i = 0; i < k.n; ++i) out[s.ids[i]] = s.w[i];
}

// Position of a token among the kept, -1 if it is none of them. The ids ascend.
int64_t position_of(const Kept& k, const int32_t* ids, int64_t token) {
  if (!k.has_ids) return token;
  int64_t low = 0, high = k.n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    ids[middle] < token ? low = middle + 1 : high = middle;
  }
  return low < k.n && ids[low] == token ? low : -1;
}

float chosen_value(const SampleTokensParams& p, const Kept& k, int64_t token, int64_t position,
                   double total, const Scratch& s) {
  float logit = -kInf;
  if (k.only >= 0)
    logit = token == k.only ? 0.f : -kInf;
  else if (position >= 0)
    logit = (s.x[position] - k.top) * p.inverse_temperature - static_cast<float>(log(total));
  if (p.log_chosen) return logit;
  return vexp(splat(logit))[0];
}

// All outputs of a row but the plain draw's.
struct RowOutputs {
  const int64_t* given;
  float *chosen, *all;
};

template <class T>
int64_t sample_row(const SampleTokensParams& p, const T* cond, const T* uncond, uint64_t row,
                   const RowOutputs& out, const Scratch& s) {
  const Kept k = filter_row(p, cond, uncond, s);
  const uint64_t first = row * static_cast<uint64_t>(p.vocabulary);
  const int32_t* ids = k.has_ids ? s.ids : nullptr;
  int64_t token = k.only, position = -1;
  double total = 1;
  if (token < 0 && (p.tokens || p.gumbel_softmax)) {
    const uint32_t* words = kept_words(p, first, k, s);
    if (p.gumbel_softmax) {
      total = weigh_gumbel(p, k, words, s);
    } else {
      position = p.double_noise ? draw_double(p, first, ids, s.x, k.n, words, k.top)
                                : draw(s.x, k.n, words, k.top, p.inverse_temperature);
      token = ids ? ids[position] : position;
    }
  }
  if (!out.chosen && !out.all) return token;
  if (k.only < 0 && !p.gumbel_softmax) total = weigh(p, k, s);
  if (out.given) {
    token = *out.given;
    position = position_of(k, s.ids, token);
  }
  if (out.chosen) *out.chosen = chosen_value(p, k, token, position, total, s);
  if (out.all) write_all(p, k, total, out.all, s);
  return token;
}

template <class P>
PIXLEAP_INLINE P* at(P* data, const int64_t* strides, int64_t b, int64_t l) {
  return data ? data + b * strides[0] + l * strides[1] : nullptr;
}

template <class T>
void sample_rows(const SampleTokensParams& p) {
  const int64_t rows_per_task = kTaskElements / p.vocabulary + 1;
  parallel_for(p.batch * p.length, rows_per_task, [&](int64_t begin, int64_t end) {
    const Scratch scratch(p.vocabulary);
    SampleTokensParams one = p;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.length, l = row % p.length;
      const T* cond = at(static_cast<const T*>(p.logits), p.logits_strides, b, l);
      const T* uncond = at(static_cast<const T*>(p.uncond), p.uncond_strides, b, l);
      const RowOutputs out{at(p.given, p.given_strides, b, l), at(p.chosen, p.chosen_strides, b, l),
                           at(p.all, p.all_strides, b, l)};
      one.seed = stream_seed(p, b);
      const int64_t token = sample_row(one, cond, uncond, stream_row(p, b, l), out, scratch);
      if (p.tokens) *at(p.tokens, p.tokens_strides, b, l) = token;
    }
    scratch.release();
  });
}

}  // namespace

void PIXLEAP_KERNEL(sample_tokens)(const SampleTokensParams& p) {
  with_float_type(p.dtype, [&]<class T>() { sample_rows<T>(p); });
}

}  // namespace pixleap
