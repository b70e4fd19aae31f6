#include <cstdlib>
#include <new>

#include "core/parallel.h"
#include "ops/dynamic_threshold/dynamic_threshold.h"
#include "simd/compress.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kChunk = 1 << 15;      // elements of a task
constexpr int64_t kKept = kChunk / 8;    // of them, candidates for the quantile
constexpr int64_t kSmall = 1 << 12;      // samples up to here are selected from as a whole
constexpr int64_t kMaxPicked = 1 << 11;  // elements that the bounds are guessed from
const float kInf = __builtin_inff();

struct Bounds {
  float low, high;
};
// What a pass over a chunk found: `count` candidates within the bounds, and how many lie below.
struct Found {
  int64_t below, count;
  bool nan;
};

// Bounds that hold the order statistics with great likelihood, from a few elements at fixed, uneven
// places. A wrong guess costs time only.
template <class T>
Bounds guess_bounds(const DynamicThresholdParams& p, const T* x) {
  float picked[kMaxPicked];
  const int64_t count = p.length < (1 << 16) ? kMaxPicked / 4 : kMaxPicked;
  const int64_t step = p.length / count;
  uint32_t state = 1;
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const int64_t at = i * step + static_cast<int64_t>(state >> 8) % step;
    const float v = to_float(x[at]), a = v < 0 ? -v : v;
    if (a == a) picked[n++] = a;
  }
  if (n < count) return {0.f, kInf};  // NaN decides
  const double q = static_cast<double>(p.rank) / static_cast<double>(p.length);
  const double middle = q * static_cast<double>(n);
  const double margin = 4.0 * __builtin_sqrt(middle * (1.0 - q)) + 2.0;
  const auto first = static_cast<int64_t>(middle - margin);
  const auto last = static_cast<int64_t>(middle + margin) + 1;
  Bounds b{0.f, kInf};
  if (first > 0) {
    dynamic_threshold_select(picked, n, first);
    b.low = picked[first];
  }
  if (last < n) {
    const int64_t from = first > 0 ? first : 0;
    dynamic_threshold_select(picked + from, n - from, last - from);
    b.high = picked[last];
  }
  return b;
}

// Moves |x| within the bounds to kept[0, limit + VW); stops counting candidates beyond the limit.
template <class T>
Found collect(const T* x, int64_t n, Bounds bounds, float* kept, int64_t limit) {
  const vf low = splat(bounds.low), high = splat(bounds.high);
  vi below{}, nan{};
  int64_t count = 0;
  for_each_vector(n, [&](int64_t i, int64_t lanes) {
    const vf a = vabs(load_upto(x + i, lanes));
    vi inside = (a >= low) & (a <= high), under = a < low;
    if (lanes < VW)
      for (int64_t k = lanes; k < VW; ++k) inside[k] = under[k] = 0;
    below -= under;
    nan |= a != a;
    const uint32_t bits = lane_bits(inside);
    if (bits) {
      compress(a, bits, kept + (count < limit ? count : limit));
      count += __builtin_popcount(bits);
    }
  });
  int64_t total = 0;
  for (int i = 0; i < VW; ++i) total += below[i];
  return {total, count, lane_bits(nan) != 0};
}

// The order statistic of rank k among |x| without NaN, by halving the interval of bit patterns.
// Where the bounds were wrong or too many values are equal.
template <class T>
float order_statistic(const T* x, int64_t n, int64_t k) {
  int32_t low = 0, high = 0x7f800000;  // the answer's bits are in [low, high]
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    int64_t upto = 0;
    for (int64_t begin = 0; begin < n; begin += int64_t{1} << 30) {
      const int64_t count = n - begin < (int64_t{1} << 30) ? n - begin : int64_t{1} << 30;
      vi lanes_upto{};
      for_each_vector(count, [&](int64_t i, int64_t lanes) {
        const vi bits = bit_cast_to<vi>(vabs(load_upto(x + begin + i, lanes)));
        vi is = bits <= splat_int(middle);
        if (lanes < VW)
          for (int64_t l = lanes; l < VW; ++l) is[l] = 0;
        lanes_upto -= is;
      });
      for (int i = 0; i < VW; ++i) upto += lanes_upto[i];
    }
    if (upto > k)
      high = middle;
    else
      low = middle + 1;
  }
  return bit_cast_to<float>(low);
}

// Scratch of one sample: candidates of every chunk, with room for one vector more.
struct Scratch {
  int64_t chunks, room;
  float* kept;
  Found* found;

  explicit Scratch(int64_t length)
      : chunks((length + kChunk - 1) / kChunk), room(length <= kSmall ? length : kKept) {
    const auto floats = static_cast<size_t>((room + VW) * chunks) * sizeof(float);
    kept = static_cast<float*>(std::malloc(floats));
    found = static_cast<Found*>(std::malloc(static_cast<size_t>(chunks) * sizeof(Found)));
    if (!kept || !found) {
      release();
      throw std::bad_alloc();
    }
  }
  // Not a destructor: unwinding would need a weak symbol.
  void release() const {
    std::free(kept);
    std::free(found);
  }
};

template <class T>
float find_scale(const DynamicThresholdParams& p, const T* x, const Scratch& s) {
  const Bounds bounds = p.length <= kSmall ? Bounds{0.f, kInf} : guess_bounds(p, x);
  parallel_for(s.chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk;
      const int64_t n = p.length - begin < kChunk ? p.length - begin : kChunk;
      s.found[chunk] = collect(x + begin, n, bounds, s.kept + chunk * (s.room + VW), s.room);
    }
  });
  int64_t below = 0, count = 0;
  bool whole = true;
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
    const Found& f = s.found[chunk];
    if (f.nan) return __builtin_nanf("");
    below += f.below;
    whole = whole && f.count <= s.room;
    if (whole) std::memmove(s.kept + count, s.kept + chunk * (s.room + VW), 4 * f.count);
    count += f.count;
  }
  const int64_t k = p.rank - below;
  const bool has_next = p.rank + 1 < p.length;
  if (whole && k >= 0 && k + (has_next ? 1 : 0) < count) {
    dynamic_threshold_select(s.kept, count, k);
    float next = has_next ? kInf : s.kept[k];
    for (int64_t i = k + 1; i < count; ++i) next = s.kept[i] < next ? s.kept[i] : next;
    return dynamic_threshold_scale(p, s.kept[k], next);
  }
  const float value = order_statistic(x, p.length, p.rank);
  return dynamic_threshold_scale(p, value,
                                 has_next ? order_statistic(x, p.length, p.rank + 1) : value);
}

template <class T>
void threshold_sample(const DynamicThresholdParams& p, int64_t sample, const Scratch& s) {
  const T* x = static_cast<const T*>(p.x) + sample * p.x_stride;
  T* out = static_cast<T*>(p.out) + sample * p.out_stride;
  const float scale = p.scale[sample] = find_scale(p, x, s);
  parallel_for(p.length, kChunk, [&](int64_t begin, int64_t end) {
    const vf high = splat(scale);
    const vi nan = high != high;
    for_each_vector(end - begin, [&](int64_t i, int64_t lanes) {
      const vf v = load_upto(x + begin + i, lanes);
      store_upto(out + begin + i, select(nan, high, vmin(vmax(v, -high), high) / high), lanes);
    });
  });
}

}  // namespace

void PIXLEAP_KERNEL(dynamic_threshold)(const DynamicThresholdParams& p) {
  // Few samples: threads share one; else each takes its own, and the inner loops run serially.
  const int64_t grain = p.batch >= num_threads() ? kChunk / (p.length + 1) + 1 : p.batch;
  parallel_for(p.batch, grain, [&](int64_t first, int64_t last) {
    const Scratch scratch(p.length);
    with_float_type(p.dtype, [&]<class T>() {
      for (int64_t sample = first; sample < last; ++sample) threshold_sample<T>(p, sample, scratch);
    });
    scratch.release();
  });
}

}  // namespace pixleap
