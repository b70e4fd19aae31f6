#include <cfloat>
#include <cstdlib>
#include <new>

#include "core/parallel.h"
#include "ops/sample_tokens/sample_tokens.h"
#include "simd/math.h"
#include "simd/philox.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kTaskElements = 1 << 15;
constexpr int64_t kPad = 2 * VW;  // NaN after the last value: every comparison with it is false
constexpr int64_t kSortBelow = 32;
const float kInf = __builtin_inff();

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
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
};

PIXLEAP_INLINE void pad(float* x, int64_t n) {
  for (int64_t i = 0; i < kPad; ++i) x[n + i] = __builtin_nanf("");
}

struct Range {
  float low, high;     // of the values above -inf
  int64_t impossible;  // values that are -inf (or NaN)
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

// Weight of the values in (low, high]; the weight of a value is w, or 1 without Weighted. For a
// fixed `low` it never falls when `high` rises, because rounded sums of a fixed order are monotone.
template <bool Weighted>
double weight_within(const float* x, const float* w, int64_t n, float low, float high) {
  const vf above = splat(low), upto = splat(high);
  double total = 0;
  constexpr int64_t kBlock = 64 * VW;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    vf sum0{}, sum1{};
    vi count0{}, count1{};
    for (int64_t i = begin; i < end; i += 2 * VW) {
      const vf a = load(x + i), b = load(x + i + VW);
      const vi in_a = (a > above) & (a <= upto), in_b = (b > above) & (b <= upto);
      if constexpr (Weighted) {
        sum0 += bit_cast_to<vf>(in_a & bit_cast_to<vi>(load(w + i)));
        sum1 += bit_cast_to<vf>(in_b & bit_cast_to<vi>(load(w + i + VW)));
      } else {
        count0 -= in_a;
        count1 -= in_b;
      }
    }
    if constexpr (Weighted)
      total += static_cast<double>(reduce_add(sum0 + sum1));
    else
      total += static_cast<double>(reduce_add(__builtin_convertvector(count0 + count1, vf)));
  }
  return total;
}

// Order-preserving integer image of a float, and back.
PIXLEAP_INLINE int64_t order_of(float x) {
  const auto bits = bit_cast_to<int32_t>(x);
  return bits < 0 ? INT32_MIN - static_cast<int64_t>(bits) : bits;
}
PIXLEAP_INLINE float float_of(int64_t order) {
  return bit_cast_to<float>(static_cast<int32_t>(order < 0 ? INT32_MIN - order : order));
}

// A value in [low, high). Halves the interval of values, later of representable numbers, so that
// the number of rounds is bounded for any distribution.
PIXLEAP_INLINE float pivot_of(float low, float high, int round) {
  float pivot = round < 24 ? 0.5f * low + 0.5f * high
                           : float_of(order_of(low) + (order_of(high) - order_of(low)) / 2);
  return pivot >= low && pivot < high ? pivot : low;
}

struct Threshold {
  float value;   // the least value with (weight of all values <= value) > limit
  double below;  // weight of the values < value
};

// Selection by bisection: each round counts what lies below three pivots, then keeps only the
// candidates between the nearest two.
template <bool Weighted>
Threshold find_threshold(const float* x, const float* w, int64_t n, Range range, double below,
                         double limit, float* cx, float* cw) {
  float low = -kInf, smallest = range.low, largest = range.high;
  for (int round = 0; smallest < largest && n > kSortBelow;) {
    float first = smallest, last = largest;  // the answer is in (low, last]
    for (int i = 0; i < 3 && first < last; ++i, ++round) {
      const float pivot = pivot_of(first, last, round);
      const double upto = below + weight_within<Weighted>(x, w, n, low, pivot);
      if (upto > limit) {
        last = pivot;
      } else {
        below = upto;
        low = first = pivot;
      }
    }
    int64_t kept = 0;
    float least = kInf, greatest = -kInf;
    for (int64_t i = 0; i < n; ++i) {
      const float v = x[i];
      const bool inside = v > low && v <= last;
      cx[kept] = v;
      if constexpr (Weighted) cw[kept] = w[i];
      least = inside && v < least ? v : least;
      greatest = inside && v > greatest ? v : greatest;
      kept += inside;
    }
    n = kept, smallest = least, largest = greatest;
    pad(cx, n);
    x = cx, w = cw;
  }
  if (!(smallest < largest)) return {largest, below};
  // Few candidates: sort them (insertion), then walk upwards over groups of equal values.
  float sx[kSortBelow], sw[kSortBelow];
  int64_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(x[i] > low && x[i] <= largest)) continue;
    int64_t j = m++;
    for (; j > 0 && sx[j - 1] > x[i]; --j) sx[j] = sx[j - 1], sw[j] = sw[j - 1];
    sx[j] = x[i], sw[j] = Weighted ? w[i] : 1.f;
  }
  for (int64_t i = 0; i < m;) {
    double upto = below;
    int64_t j = i;
    for (; j < m && sx[j] == sx[i]; ++j) upto += static_cast<double>(sw[j]);
    if (upto > limit || j == m) return {sx[i], below};
    below = upto;
    i = j;
  }
  return {largest, below};
}

// Moves the values that are >= value to the front, except the first `skip` of those equal to it.
template <bool HasIds>
int64_t keep_from(float* x, int32_t* ids, int64_t n, float value, int64_t skip) {
  int64_t kept = 0, i = 0;
  for (; skip > 0 && i < n; ++i) {
    const float v = x[i];
    const bool tie = v == value;
    x[kept] = v;
    ids[kept] = HasIds ? ids[i] : static_cast<int32_t>(i);
    kept += v > value;
    skip -= tie;
  }
  for (; i < n; ++i) {
    const float v = x[i];
    x[kept] = v;
    ids[kept] = HasIds ? ids[i] : static_cast<int32_t>(i);
    kept += v >= value;
  }
  pad(x, kept);
  return kept;
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
int64_t draw(const float* x, int64_t n, const uint32_t* words, float top, float inverse) {
  vf best = splat(-kInf);
  vi best_at{}, at;
  for (int i = 0; i < VW; ++i) at[i] = i;
  for (int64_t i = 0; i < n; i += VW, at += VW) {
    vu word;
    std::memcpy(&word, words + i, sizeof word);
    const vf gumbel = -vlog(-vlog(uniform_open_vector(word)));
    const vf score = fma(load(x + i) - top, splat(inverse), gumbel);
    const vi better = score > best;  // false for the padding
    best = select(better, score, best);
    best_at = better ? at : best_at;
  }
  const float greatest = reduce_max(best);
  int64_t position = n - 1;
  for (int i = 0; i < VW; ++i)
    if (best[i] == greatest && best_at[i] < position) position = best_at[i];
  return position;
}

template <class T>
int64_t sample_row(const SampleTokensParams& p, const T* cond, const T* uncond, uint64_t row,
                   const Scratch& s) {
  int64_t n = p.vocabulary;
  Range range = load_row(p, cond, uncond, s.x);
  if (range.high == -kInf) return 0;
  if (p.greedy || range.high == kInf) return first_equal(s.x, n, range.high);
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
  if (n == 1) return has_ids ? s.ids[0] : 0;
  const uint64_t first = row * static_cast<uint64_t>(p.vocabulary);
  const uint32_t* words = s.kept_words;
  if (!has_ids || 4 * n > p.vocabulary) {  // one group has the words of four neighbours
    philox_words(p.seed, p.offset, first, p.vocabulary, s.words);
    words = s.words + first % 4;
    if (has_ids) {
      for (int64_t i = 0; i < n; ++i) s.kept_words[i] = words[s.ids[i]];
      words = s.kept_words;
    }
  } else {
    sparse_words(p, first, s.ids, n, s.kept_words);
  }
  const int64_t position = draw(s.x, n, words, range.high, p.inverse_temperature);
  return has_ids ? s.ids[position] : position;
}

template <class T>
void sample_rows(const SampleTokensParams& p) {
  const int64_t rows_per_task = kTaskElements / p.vocabulary + 1;
  parallel_for(p.batch * p.length, rows_per_task, [&](int64_t begin, int64_t end) {
    const Scratch scratch(p.vocabulary);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.length, l = row % p.length;
      const T* cond =
          static_cast<const T*>(p.logits) + b * p.logits_strides[0] + l * p.logits_strides[1];
      const T* uncond = p.uncond ? static_cast<const T*>(p.uncond) + b * p.uncond_strides[0] +
                                       l * p.uncond_strides[1]
                                 : nullptr;
      const uint64_t index =
          p.first_sample * static_cast<uint64_t>(p.length) + static_cast<uint64_t>(row);
      p.tokens[b * p.tokens_strides[0] + l * p.tokens_strides[1]] =
          sample_row(p, cond, uncond, index, scratch);
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(sample_tokens)(const SampleTokensParams& p) {
  with_float_type(p.dtype, [&]<class T>() { sample_rows<T>(p); });
}

}  // namespace pixleap
