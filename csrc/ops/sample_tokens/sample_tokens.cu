#include "core/philox.h"
#include "cuda/launch.h"
#include "ops/sample_tokens/sample_tokens.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;  // also the number of bins: a thread holds one in a scan
using Sum = unsigned long long;

// Weights of exp are summed as integers of this unit, which makes sums exact in any order; 2^28 of
// them stay below 2^63.
constexpr float kWeightUnit = 0x1p35f;

struct Shared {
  Sum bins[kThreads], scan[2][kThreads];
  double doubles[kThreads];
  float floats[kThreads];
  int64_t indices[kThreads];
  Sum below;
  uint32_t digit;
};

// Unsigned image of a float that orders as the values do.
__device__ inline uint32_t order_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float float_of(uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// Every thread gets the result; `combine` is applied in a fixed order.
template <class V, class Combine>
__device__ V reduce(V mine, V* values, Combine combine) {
  __syncthreads();
  values[threadIdx.x] = mine;
  for (int step = kThreads / 2; step; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step)
      values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + step]);
  }
  __syncthreads();
  return values[0];
}

struct Selected {
  uint32_t key;
  Sum below;  // weight of the keys < key
};

// The least key with (weight of all keys <= key) > limit, digit by digit of 8 bits. key(i) and
// weight(i) describe element i; elements of weight 0 do not count.
template <class Key, class Weight>
__device__ Selected select(int64_t n, Sum limit, Shared& s, Key key, Weight weight) {
  uint32_t prefix = 0;
  Sum below = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    s.bins[threadIdx.x] = 0;
    if (threadIdx.x == 0) s.digit = 255;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const Sum w = weight(i);
      if (!w) continue;
      const uint32_t k = key(i);
      if (shift < 24 && k >> (shift + 8) != prefix) continue;
      atomicAdd(&s.bins[k >> shift & 255u], w);
    }
    __syncthreads();
    int from = 0;
    s.scan[0][threadIdx.x] = s.bins[threadIdx.x];
    for (int step = 1; step < kThreads; step *= 2, from ^= 1) {
      __syncthreads();
      Sum sum = s.scan[from][threadIdx.x];
      if (static_cast<int>(threadIdx.x) >= step) sum += s.scan[from][threadIdx.x - step];
      s.scan[from ^ 1][threadIdx.x] = sum;
    }
    __syncthreads();
    if (below + s.scan[from][threadIdx.x] > limit) atomicMin(&s.digit, threadIdx.x);
    __syncthreads();
    const uint32_t digit = s.digit;
    below += s.scan[from][digit] - s.bins[digit];
    prefix = prefix << 8 | digit;
  }
  return {prefix, below};
}

// A row of logits and what the filters leave of it. Values are read again in every pass: from L2,
// since there is no room for a row of any size in shared memory.
template <class T>
struct Row {
  const T *cond, *uncond;
  float scale, top, inverse;
  uint64_t seed;
  float least = -INFINITY;  // kept: x > least, or x == least from index `first_tie` on
  int64_t first_tie = 0;

  __device__ float operator[](int64_t i) const {
    float x = to_accumulate(cond[i]);
    if (uncond) x = __fmaf_rn(scale, x, __fmul_rn(1.f - scale, to_accumulate(uncond[i])));
    x += 0.f;  // -0 and 0 are one value
    return x == x ? x : -INFINITY;
  }
  __device__ bool keeps(float x, int64_t i) const {
    return x > least || (x == least && i >= first_tie && x > -INFINITY);
  }
  __device__ float logit(float x) const { return (x - top) * inverse; }
};

template <class T>
__device__ void keep_top_k(const SampleTokensParams& p, Row<T>& row, Shared& s) {
  const Selected kth = select(
      p.vocabulary, static_cast<Sum>(p.vocabulary - p.top_k), s,
      [&](int64_t i) { return order_of(row[i]); }, [](int64_t) -> Sum { return 1; });
  row.least = float_of(kth.key);
}

template <class T>
__device__ void keep_top_p(const SampleTokensParams& p, Row<T>& row, Shared& s) {
  const auto weight_of = [&](float x) {
    return static_cast<Sum>(expf(row.logit(x)) * kWeightUnit);
  };
  const auto weight = [&](int64_t i) -> Sum {
    const float x = row[i];
    return row.keeps(x, i) ? weight_of(x) : 0;
  };
  const auto key = [&](int64_t i) { return order_of(row[i]); };
  Sum mine = 0;
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) mine += weight(i);
  const Sum total = reduce(mine, s.bins, [](Sum a, Sum b) { return a + b; });
  const Sum limit = static_cast<Sum>((1 - p.top_p) * static_cast<double>(total));
  const Selected nucleus = select(p.vocabulary, limit, s, key, weight);
  const float value = float_of(nucleus.key);
  const auto tied = [&](int64_t i) -> Sum { return row[i] == value; };
  mine = 0;
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) mine += tied(i);
  const Sum ties = reduce(mine, s.bins, [](Sum a, Sum b) { return a + b; });
  // Of tokens that tie at the threshold, those that still fit under the limit go, lowest first.
  Sum skip = (limit - nucleus.below) / weight_of(value);
  if (skip > ties - 1) skip = ties - 1;
  row.least = value;
  if (skip > 0)
    row.first_tie =
        select(p.vocabulary, skip, s, [](int64_t i) { return static_cast<uint32_t>(i); }, tied).key;
}

struct Best {
  double score;
  int64_t token;
};

__device__ Best best_of(Best mine, Shared& s) {
  __syncthreads();
  s.doubles[threadIdx.x] = mine.score;
  s.indices[threadIdx.x] = mine.token;
  for (int step = kThreads / 2; step; step /= 2) {
    __syncthreads();
    const int other = static_cast<int>(threadIdx.x) + step;
    if (static_cast<int>(threadIdx.x) >= step) continue;
    const double a = s.doubles[threadIdx.x], b = s.doubles[other];
    if (b > a || (b == a && s.indices[other] < s.indices[threadIdx.x]))
      s.doubles[threadIdx.x] = b, s.indices[threadIdx.x] = s.indices[other];
  }
  __syncthreads();
  return {s.doubles[0], s.indices[0]};
}

__device__ inline float gumbel(const SampleTokensParams& p, uint64_t seed, uint64_t element) {
  return -logf(-logf(uniform_open(philox_element(seed, p.offset, element))));
}

__device__ inline double gumbel_double(const SampleTokensParams& p, uint64_t seed,
                                       uint64_t element) {
  const uint32_t high = philox_element(seed, p.offset, element);
  const Philox4 low = philox4x32_10(seed, element / 4 + kLowWordGroups, p.offset);
  const bool odd = (element & 1) != 0;
  const uint32_t word =
      (element & 2) == 0 ? (odd ? low.v[1] : low.v[0]) : (odd ? low.v[3] : low.v[2]);
  return -log(-log(uniform_open_double(high, word)));
}

// Position of the largest score; the lowest one on ties.
template <class T>
__device__ int64_t draw(const SampleTokensParams& p, const Row<T>& row, uint64_t first, Shared& s) {
  Best mine{-INFINITY, p.vocabulary};
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) {
    const float x = row[i];
    if (!row.keeps(x, i)) continue;
    const uint64_t element = first + static_cast<uint64_t>(i);
    double score;
    if (p.double_noise)
      score = (static_cast<double>(x) - static_cast<double>(row.top)) *
                  static_cast<double>(row.inverse) +
              gumbel_double(p, row.seed, element);
    else
      score = static_cast<double>(row.logit(x) + gumbel(p, row.seed, element));
    if (score > mine.score) mine = {score, i};
  }
  return best_of(mine, s).token;
}

// Token with all the probability of a row that has no distribution: the first one of value `top`.
template <class T>
__device__ int64_t first_of(const SampleTokensParams& p, const Row<T>& row, Shared& s) {
  Best mine{-INFINITY, p.vocabulary};
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads)
    if (row[i] == row.top && mine.token == p.vocabulary) mine = {0, i};
  return best_of(mine, s).token;
}

template <class T>
__device__ void sample_row(const SampleTokensParams& p, Row<T> row, uint64_t index, int64_t* token,
                           const int64_t* given, float* chosen, float* all, Shared& s) {
  const auto largest = [](float a, float b) { return a > b ? a : b; };
  const auto add = [](double a, double b) { return a + b; };
  float high = -INFINITY;
  for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) high = largest(high, row[i]);
  row.top = reduce(high, s.floats, largest);
  const uint64_t first = index * static_cast<uint64_t>(p.vocabulary);
  int64_t only = -1;
  if (p.greedy || isinf(row.top)) {
    only = first_of(p, row, s);
  } else {
    if (p.top_k > 0) keep_top_k(p, row, s);
    if (p.top_p < 1) keep_top_p(p, row, s);
  }
  int64_t drawn = only;
  if (only < 0 && p.tokens) drawn = draw(p, row, first, s);
  if (token && threadIdx.x == 0) *token = drawn;
  if (!chosen && !all) return;

  // The score whose softmax is asked for.
  const auto score = [&](float x, int64_t i) {
    if (!p.gumbel_softmax) return row.logit(x);
    return (x - row.top) * p.logit_scale + gumbel(p, row.seed, first + static_cast<uint64_t>(i));
  };
  float highest = 0, factor = 1;
  double total = 1;
  if (only < 0) {
    if (p.gumbel_softmax) {
      high = -INFINITY;
      for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) {
        const float x = row[i];
        if (row.keeps(x, i)) high = largest(high, score(x, i));
      }
      highest = reduce(high, s.floats, largest);
      factor = p.inverse_softmax_temperature;
    }
    double mine = 0;
    for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) {
      const float x = row[i];
      if (row.keeps(x, i)) mine += static_cast<double>(expf((score(x, i) - highest) * factor));
    }
    total = reduce(mine, s.doubles, add);
  }
  const float log_total = static_cast<float>(log(total));
  const auto log_probability = [&](int64_t i) {
    if (only >= 0) return i == only ? 0.f : -INFINITY;
    const float x = row[i];
    return row.keeps(x, i) ? (score(x, i) - highest) * factor - log_total : -INFINITY;
  };
  if (chosen && threadIdx.x == 0) {
    const int64_t at = given ? *given : drawn;
    const float value = at >= 0 && at < p.vocabulary ? log_probability(at) : -INFINITY;
    *chosen = p.log_chosen ? value : expf(value);
  }
  if (all)
    for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads)
      all[i] = p.log_all ? log_probability(i) : expf(log_probability(i));
}

template <class P>
__device__ P* at(P* data, const int64_t* strides, int64_t b, int64_t l) {
  return data ? data + b * strides[0] + l * strides[1] : nullptr;
}

// One block per row.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_tokens_kernel(const SampleTokensParams p) {
  __shared__ Shared s;
  for (int64_t i = blockIdx.x; i < p.batch * p.length; i += gridDim.x) {
    const int64_t b = i / p.length, l = i % p.length;
    const Row<T> row{at(static_cast<const T*>(p.logits), p.logits_strides, b, l),
                     at(static_cast<const T*>(p.uncond), p.uncond_strides, b, l),
                     p.guidance_scale,
                     0.f,
                     p.inverse_temperature,
                     stream_seed(p, b)};
    sample_row(p, row, stream_row(p, b, l), at(p.tokens, p.tokens_strides, b, l),
               at(p.given, p.given_strides, b, l), at(p.chosen, p.chosen_strides, b, l),
               at(p.all, p.all_strides, b, l), s);
    __syncthreads();
  }
}

}  // namespace

void sample_tokens_cuda(const SampleTokensParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>)
      launch(sample_tokens_kernel<T>, grid_for(p.batch * p.length, 1), kThreads, device, p);
  });
}

}  // namespace pixleap
