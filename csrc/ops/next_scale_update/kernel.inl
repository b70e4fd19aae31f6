// Channel mixing and upsampling act on different axes, so they commute: the nine matrices of the
// convolution are applied to the n * n tokens, and what follows is a sum of few weighted rows. The
// blend (1 - r) h + r conv(h) is one convolution with a changed centre tap.
// A task is one sample and one block of VW output channels; lanes run over the block.

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/parallel.h"
#include "ops/next_scale_update/next_scale_update.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kTaskMultiplies = 1 << 19;
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
  // Not a destructor: unwinding would need a weak symbol, and nothing between the two throws.
  void release() const { std::free(memory); }
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

// M tokens times the nine matrices. Not inlined: the 4 x 3 sums, three weights and one factor take
// all 16 registers of AVX2.
template <int M>
[[gnu::noinline]] void mix(const float* const* entries, const float* weights, int64_t channels,
                           float* mixed) {
  const float* entry[M];
  for (int m = 0; m < M; ++m) entry[m] = entries[m];
  for (int ky = 0; ky < 3; ++ky) {
    vf sum[M][3] = {};
    const float* w = weights + ky * channels * 3 * VW;
    for (int64_t ci = 0; ci < channels; ++ci, w += 3 * VW) {
      const vf w0 = load(w), w1 = load(w + VW), w2 = load(w + 2 * VW);
      for (int m = 0; m < M; ++m) {
        const vf a = splat(entry[m][ci]);
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
void upsample_row(const UpsampleTerms* terms, int64_t height, const float* mixed, float* rows) {
  for (int64_t x = 0; x < height; ++x) {
    vf sum[3] = {};
    for (int i = 0; i < terms[x].count; ++i) {
      const UpsampleTerm t = terms[x].term[i];
      const vf weight = splat(t.weight);
      for (int ky = 0; ky < 3; ++ky)
        sum[ky] = fma(weight, load(mixed + ((t.at * 3 + ky) * 3 + t.tap) * VW), sum[ky]);
    }
    for (int ky = 0; ky < 3; ++ky) store(rows + (ky * height + x) * VW, sum[ky]);
  }
}

// Along y: one row of the tile, N pixels at a time.
template <int N>
void sum_pixels(const UpsampleTerms& terms, const float* rows, int64_t height, vf bias,
                float* out) {
  vf sum[N];
  for (int i = 0; i < N; ++i) sum[i] = bias;
  for (int j = 0; j < terms.count; ++j) {
    const UpsampleTerm t = terms.term[j];
    const float* row = rows + (t.at * 3 + t.tap) * height * VW;
    const vf weight = splat(t.weight);
    for (int i = 0; i < N; ++i) sum[i] = fma(weight, load(row + i * VW), sum[i]);
  }
  for (int i = 0; i < N; ++i) store(out + i * VW, sum[i]);
}

void upsample_column(const NextScaleUpdateParams& p, const float* rows, vf bias, float* tile) {
  const int64_t h = p.height;
  for (int64_t y = 0; y < h; ++y) {
    int64_t x = 0;
    for (; x + 8 <= h; x += 8)
      sum_pixels<8>(p.terms[y], rows + x * VW, h, bias, tile + (y * h + x) * VW);
    for (; x < h; ++x) sum_pixels<1>(p.terms[y], rows + x * VW, h, bias, tile + (y * h + x) * VW);
  }
}

// f_hat_new = f_hat + tile over `pixels` neighbours; the sum also replaces the tile, for the
// pooling.
void accumulate_pixels(const NextScaleUpdateParams& p, const float* f, float* f_new, int64_t lanes,
                       int64_t pixels, float* tile) {
  for_each_vector(pixels, [&](int64_t x, int64_t count) {
    vf block[VW] = {};  // pixels x channels, then channels x pixels
    for (int i = 0; i < count; ++i) block[i] = load(tile + (x + i) * VW);
    transpose(block);
    for (int c = 0; c < lanes; ++c) {
      block[c] = load_upto(f + c * p.f_strides[1] + x, count) + block[c];
      store_upto(f_new + c * p.f_new_strides[1] + x, block[c], count);
    }
    if (p.next_side == 0) return;
    transpose(block);
    for (int i = 0; i < count; ++i) store(tile + (x + i) * VW, block[i]);
  });
}

void accumulate(const NextScaleUpdateParams& p, const float* f, float* f_new, int64_t lanes,
                float* tile) {
  const int64_t h = p.height;
  if (p.f_strides[2] == h && p.f_new_strides[2] == h)
    return accumulate_pixels(p, f, f_new, lanes, h * h, tile);
  for (int64_t y = 0; y < h; ++y)
    accumulate_pixels(p, f + y * p.f_strides[2], f_new + y * p.f_new_strides[2], lanes, h,
                      tile + y * h * VW);
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

void update(const NextScaleUpdateParams& p, int64_t sample, int64_t first, int64_t lanes,
            const Scratch& s) {
  const int64_t n = p.side, h = p.height;
  const int64_t* tokens = p.tokens + sample * p.tokens_strides[0];
  for (int64_t y = 0; y < n; ++y) {
    for (int64_t x = 0; x < n; ++x)
      s.entries[x] = p.codebook + tokens[(y * n + x) * p.tokens_strides[1]] * p.codebook_stride;
    mix_row(s.entries, s.weights, n, p.channels, s.mixed);
    upsample_row(p.terms, h, s.mixed, s.rows + y * 3 * h * VW);
  }
  const vf bias = load_upto(p.phi_bias + first, lanes) * p.phi_ratio;
  upsample_column(p, s.rows, bias, s.tile);
  accumulate(p, p.f_hat + sample * p.f_strides[0] + first * p.f_strides[1],
             p.f_hat_new + sample * p.f_new_strides[0] + first * p.f_new_strides[1], lanes, s.tile);
  area_down(p, s.tile, lanes, p.next_input + sample * p.next_strides[0] + first);
}

}  // namespace

void PIXLEAP_KERNEL(next_scale_update)(const NextScaleUpdateParams& p) {
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
      update(p, task % p.batch, first, lanes, scratch);
    }
    scratch.release();
  });
}

}  // namespace pixleap
