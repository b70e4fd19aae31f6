// Channel mixing and upsampling act on different axes, so they commute: the nine matrices of the
// convolution are applied to the n * n tokens, and what follows is a sum of few weighted rows. The
// blend (1 - r) h + r conv(h) is one convolution with a changed centre tap.
// A task is one sample and one block of VW output channels; lanes run over the block.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/parallel.h"
#include "ops/next_scale_update/next_scale_update.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kTaskMultiplies = 1 << 20;
constexpr int kMaxTerms = 12;  // 3 taps of the convolution times 4 of the bicubic kernel

// How one output coordinate depends on the n source coordinates through upsampling and one axis
// of the convolution: weight * source[at] under tap `tap`, rows out of the map left out.
struct Term {
  int32_t tap, at;
  float weight;
};
struct Terms {
  int32_t count;
  Term term[kMaxTerms];
};

void add_term(Terms& t, int tap, int64_t at, double weight) {
  for (int i = 0; i < t.count; ++i)
    if (t.term[i].tap == tap && t.term[i].at == at) {
      t.term[i].weight += static_cast<float>(weight);  // taps clamped to the border
      return;
    }
  t.term[t.count++] = {tap, static_cast<int32_t>(at), static_cast<float>(weight)};
}

// Keys' cubic convolution kernel with A = -0.75 at distance d from the sample.
double cubic(double d) {
  constexpr double a = -0.75;
  d = d < 0 ? -d : d;
  if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
  return 0;
}

void make_terms(int64_t height, int64_t side, Terms* terms) {
  for (int64_t y = 0; y < height; ++y) {
    Terms& t = terms[y];
    t.count = 0;
    for (int tap = 0; tap < 3; ++tap) {
      const int64_t up = y + tap - 1;
      if (up < 0 || up >= height) continue;
      if (side == height) {
        add_term(t, tap, up, 1);
        continue;
      }
      const double position = (static_cast<double>(up) + 0.5) * static_cast<double>(side) /
                                  static_cast<double>(height) -
                              0.5;
      const double base = std::floor(position);
      for (int j = -1; j <= 2; ++j) {
        const int64_t at = static_cast<int64_t>(base) + j;
        add_term(t, tap, at < 0 ? 0 : at >= side ? side - 1 : at, cubic(position - (base + j)));
      }
    }
  }
}

// Scratch of one task.
struct Scratch {
  char* memory;
  float* weights;         // [ky][ci][kx][VW]
  float* mixed;           // one token row: [x][ky][kx][VW]
  float* rows;            // [y][ky][X][VW]
  float* tile;            // [Y][X][VW]
  const float** entries;  // codebook rows of one token row

  explicit Scratch(const NextScaleUpdateParams& p) {
    const auto c = static_cast<size_t>(p.channels), h = static_cast<size_t>(p.height),
               n = static_cast<size_t>(p.side), lanes = static_cast<size_t>(VW);
    const size_t sizes[] = {9 * c * lanes, 9 * n * lanes, 3 * n * h * lanes, h * h * lanes};
    size_t total = 0;
    for (const size_t size : sizes) total += size;
    memory = static_cast<char*>(std::malloc(total * sizeof(float) + n * sizeof(float*) + 64));
    if (!memory) throw std::bad_alloc();
    weights = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + 63) & ~63ull);
    mixed = weights + sizes[0];
    rows = mixed + sizes[1];
    tile = rows + sizes[2];
    entries = reinterpret_cast<const float**>(tile + sizes[3]);
  }
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
};

// The convolution's weights of output channels [first, first + lanes), the blend folded in.
void pack_weights(const NextScaleUpdateParams& p, int64_t first, int64_t lanes, float* packed) {
  const int64_t c = p.channels;
  if (lanes < VW) std::memset(packed, 0, sizeof(float) * static_cast<size_t>(9 * c * VW));
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t co = first + lane;
    for (int64_t ci = 0; ci < c; ++ci)
      for (int ky = 0; ky < 3; ++ky)
        for (int kx = 0; kx < 3; ++kx) {
          float w = p.phi_ratio * p.phi_weight[((co * c + ci) * 3 + ky) * 3 + kx];
          if (ky == 1 && kx == 1 && ci == co) w += 1.f - p.phi_ratio;
          packed[((ky * c + ci) * 3 + kx) * VW + lane] = w;
        }
  }
}

// M tokens times the nine matrices.
template <int M>
void mix(const float* const* entries, const float* weights, int64_t channels, float* mixed) {
  for (int ky = 0; ky < 3; ++ky) {
    vf sum[M][3] = {};
    const float* w = weights + ky * channels * 3 * VW;
    for (int64_t ci = 0; ci < channels; ++ci, w += 3 * VW) {
      const vf w0 = load(w), w1 = load(w + VW), w2 = load(w + 2 * VW);
      for (int m = 0; m < M; ++m) {
        const vf a = splat(entries[m][ci]);
        sum[m][0] = fma(a, w0, sum[m][0]);
        sum[m][1] = fma(a, w1, sum[m][1]);
        sum[m][2] = fma(a, w2, sum[m][2]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int kx = 0; kx < 3; ++kx) store(mixed + ((m * 3 + ky) * 3 + kx) * VW, sum[m][kx]);
  }
}

void mix_row(const float* const* entries, const float* weights, int64_t n, int64_t channels,
             float* mixed) {
  int64_t x = 0;
  for (; x + 4 <= n; x += 4) mix<4>(entries + x, weights, channels, mixed + x * 9 * VW);
  entries += x, mixed += x * 9 * VW;
  switch (n - x) {
    case 3:
      return mix<3>(entries, weights, channels, mixed);
    case 2:
      return mix<2>(entries, weights, channels, mixed);
    case 1:
      return mix<1>(entries, weights, channels, mixed);
    default:
      return;
  }
}

// Along x: rows[ky][X] of one token row.
void upsample_row(const Terms* terms, int64_t height, const float* mixed, float* rows) {
  for (int64_t x = 0; x < height; ++x) {
    vf sum[3] = {};
    for (int i = 0; i < terms[x].count; ++i) {
      const Term t = terms[x].term[i];
      const vf weight = splat(t.weight);
      for (int ky = 0; ky < 3; ++ky)
        sum[ky] = fma(weight, load(mixed + ((t.at * 3 + ky) * 3 + t.tap) * VW), sum[ky]);
    }
    for (int ky = 0; ky < 3; ++ky) store(rows + (ky * height + x) * VW, sum[ky]);
  }
}

// Along y: one row of the tile, N pixels at a time.
template <int N>
void sum_pixels(const Terms& terms, const float* rows, int64_t height, vf bias, float* out) {
  vf sum[N];
  for (int i = 0; i < N; ++i) sum[i] = bias;
  for (int j = 0; j < terms.count; ++j) {
    const Term t = terms.term[j];
    const float* row = rows + (t.at * 3 + t.tap) * height * VW;
    const vf weight = splat(t.weight);
    for (int i = 0; i < N; ++i) sum[i] = fma(weight, load(row + i * VW), sum[i]);
  }
  for (int i = 0; i < N; ++i) store(out + i * VW, sum[i]);
}

void upsample_column(const NextScaleUpdateParams& p, const Terms* terms, const float* rows, vf bias,
                     float* tile) {
  const int64_t h = p.height;
  for (int64_t y = 0; y < h; ++y) {
    int64_t x = 0;
    for (; x + 8 <= h; x += 8)
      sum_pixels<8>(terms[y], rows + x * VW, h, bias, tile + (y * h + x) * VW);
    for (; x < h; ++x) sum_pixels<1>(terms[y], rows + x * VW, h, bias, tile + (y * h + x) * VW);
  }
}

// f_hat_new = f_hat + tile; the sum also replaces the tile, for the pooling.
void accumulate(const NextScaleUpdateParams& p, const float* f, float* f_new, int64_t lanes,
                float* tile) {
  for (int64_t y = 0; y < p.height; ++y)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float* from = f + lane * p.f_strides[1] + y * p.f_strides[2];
      float* to = f_new + lane * p.f_new_strides[1] + y * p.f_new_strides[2];
      float* column = tile + y * p.height * VW + lane;
      for (int64_t x = 0; x < p.height; ++x) to[x] = column[x * VW] = from[x] + column[x * VW];
    }
}

// Adaptive average: window i covers [floor(i H / m), ceil((i + 1) H / m)).
void area_down(const NextScaleUpdateParams& p, const float* tile, int64_t lanes, float* next) {
  const int64_t h = p.height, m = p.next_side;
  for (int64_t i = 0; i < m; ++i) {
    const int64_t top = i * h / m, bottom = ((i + 1) * h + m - 1) / m;
    for (int64_t j = 0; j < m; ++j) {
      const int64_t left = j * h / m, right = ((j + 1) * h + m - 1) / m;
      vf sum{};
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x) sum += load(tile + (y * h + x) * VW);
      const auto area = static_cast<float>((bottom - top) * (right - left));
      store_upto(next + (i * m + j) * p.next_strides[1], sum / area, lanes);
    }
  }
}

void update(const NextScaleUpdateParams& p, const Terms* terms, int64_t sample, int64_t first,
            int64_t lanes, const Scratch& s) {
  const int64_t n = p.side, h = p.height;
  const int64_t* tokens = p.tokens + sample * p.tokens_strides[0];
  for (int64_t y = 0; y < n; ++y) {
    for (int64_t x = 0; x < n; ++x)
      s.entries[x] = p.codebook + tokens[(y * n + x) * p.tokens_strides[1]] * p.codebook_stride;
    mix_row(s.entries, s.weights, n, p.channels, s.mixed);
    upsample_row(terms, h, s.mixed, s.rows + y * 3 * h * VW);
  }
  const vf bias = load_upto(p.phi_bias + first, lanes) * p.phi_ratio;
  upsample_column(p, terms, s.rows, bias, s.tile);
  accumulate(p, p.f_hat + sample * p.f_strides[0] + first * p.f_strides[1],
             p.f_hat_new + sample * p.f_new_strides[0] + first * p.f_new_strides[1], lanes, s.tile);
  area_down(p, s.tile, lanes, p.next_input + sample * p.next_strides[0] + first);
}

}  // namespace

void PIXLEAP_KERNEL(next_scale_update)(const NextScaleUpdateParams& p) {
  auto* terms = static_cast<Terms*>(std::malloc(static_cast<size_t>(p.height) * sizeof(Terms)));
  if (!terms) throw std::bad_alloc();
  struct Release {
    Terms* terms;
    ~Release() { std::free(terms); }
  } const release{terms};
  make_terms(p.height, p.side, terms);
  const int64_t blocks = (p.channels + VW - 1) / VW;
  const int64_t n = p.side, h = p.height;
  const int64_t work = (9 * n * n * p.channels + 36 * n * h + 13 * h * h) * VW;
  parallel_for(blocks * p.batch, kTaskMultiplies / work + 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(p);
    int64_t packed = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / p.batch, first = block * VW;
      const int64_t lanes = p.channels - first < VW ? p.channels - first : VW;
      if (packed != block) pack_weights(p, first, lanes, scratch.weights);
      packed = block;
      update(p, terms, task % p.batch, first, lanes, scratch);
    }
  });
}

}  // namespace pixleap
