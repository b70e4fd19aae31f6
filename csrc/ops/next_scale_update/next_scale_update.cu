#include "cuda/launch.h"
#include "ops/next_scale_update/next_scale_update.h"
#include "ops/next_scale_update/upsample.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;
constexpr int kMemory = 10240;  // floats of shared memory for the maps of a block
constexpr int kMaxHeight = 48;  // larger maps go to the kernels below
constexpr int kMaxLanes = 8;

// Row of the codebook of a token; NaN stands for one that is none (the CPU refuses it).
__device__ inline const float* code(const NextScaleUpdateParams& p, int64_t sample, int64_t i) {
  const int64_t token = p.tokens[sample * p.tokens_strides[0] + i * p.tokens_strides[1]];
  return token >= 0 && token < p.vocabulary ? p.codebook + token * p.codebook_stride : nullptr;
}

// Three taps of a row of the convolution for one token and output channel, the blend folded in.
__device__ inline void mix(const NextScaleUpdateParams& p, const float* entry, int64_t channel,
                           int ky, float (&sum)[3]) {
  sum[0] = sum[1] = sum[2] = entry ? 0.f : NAN;
  if (!entry) return;
  const float* w = p.phi_weight + channel * p.channels * 9 + ky * 3;
  for (int64_t ci = 0; ci < p.channels; ++ci, w += 9) {
    const float a = entry[ci];
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) sum[kx] = fmaf(a, w[kx], sum[kx]);
  }
#pragma unroll
  for (int kx = 0; kx < 3; ++kx) sum[kx] *= p.phi_ratio;
  if (ky == 1) sum[1] = fmaf(1.f - p.phi_ratio, entry[channel], sum[1]);
}

// The window of one coordinate of the next scale's input.
struct Window {
  int64_t begin, end;
  __device__ Window(const NextScaleUpdateParams& p, int64_t i)
      : begin(i * p.height / p.next_side),
        end(((i + 1) * p.height + p.next_side - 1) / p.next_side) {}
};

struct Shared {
  UpsampleTerms terms[kMaxHeight];
  float memory[kMemory];
};

// One block per sample and `lanes` output channels. As on the CPU: tokens are mixed a few rows at a
// time and upsampled along x; then the map is summed along y, added and averaged. A channel takes
// 3 n H + max(9 n times the rows, H H) floats.
__global__ void __launch_bounds__(kThreads)
    next_scale_update_kernel(const NextScaleUpdateParams p, int lanes, int token_rows) {
  __shared__ Shared s;
  const int thread = static_cast<int>(threadIdx.x);
  const int h = static_cast<int>(p.height), n = static_cast<int>(p.side);
  const int64_t blocks = (p.channels + lanes - 1) / lanes;
  for (int y = thread; y < h; y += kThreads) make_terms(h, n, y, s.terms[y]);
  float* rows = s.memory;                   // [lane][y][ky][X]
  float* mixed = rows + lanes * 3 * n * h;  // [lane][row][x][ky][kx]
  float* tile = mixed;                      // [lane][Y][X], after the last mixed row
  for (int64_t task = blockIdx.x; task < p.batch * blocks; task += gridDim.x) {
    const int64_t sample = task / blocks, first = task % blocks * lanes;
    const int count = p.channels - first < lanes ? static_cast<int>(p.channels - first) : lanes;
    for (int y0 = 0; y0 < n; y0 += token_rows) {
      const int here = n - y0 < token_rows ? n - y0 : token_rows;
      __syncthreads();  // what the last step read is written over
      for (int i = thread; i < count * here * n * 3; i += kThreads) {
        const int lane = i / (here * n * 3), token = i / 3 % (here * n);
        float sum[3];
        mix(p, code(p, sample, y0 * n + token), first + lane, i % 3, sum);
        for (int kx = 0; kx < 3; ++kx) mixed[i * 3 + kx] = sum[kx];
      }
      __syncthreads();
      for (int i = thread; i < count * here * 3 * h; i += kThreads) {
        const int lane = i / (here * 3 * h), y = i / (3 * h) % here, ky = i / h % 3, x = i % h;
        const float* row = mixed + (lane * here + y) * n * 9 + ky * 3;
        float sum = 0;
        for (int t = 0; t < s.terms[x].count; ++t) {
          const UpsampleTerm term = s.terms[x].term[t];
          sum = fmaf(term.weight, row[term.at * 9 + term.tap], sum);
        }
        rows[((lane * n + y0 + y) * 3 + ky) * h + x] = sum;
      }
    }
    __syncthreads();
    for (int i = thread; i < count * h * h; i += kThreads) {
      const int lane = i / (h * h), y = i / h % h, x = i % h;
      const int64_t channel = first + lane;
      float sum = p.phi_bias[channel] * p.phi_ratio;
      for (int t = 0; t < s.terms[y].count; ++t) {
        const UpsampleTerm term = s.terms[y].term[t];
        sum = fmaf(term.weight, rows[((lane * n + term.at) * 3 + term.tap) * h + x], sum);
      }
      sum += p.f_hat[sample * p.f_strides[0] + channel * p.f_strides[1] + y * p.f_strides[2] + x];
      p.f_hat_new[sample * p.f_new_strides[0] + channel * p.f_new_strides[1] +
                  y * p.f_new_strides[2] + x] = sum;
      tile[i] = sum;
    }
    __syncthreads();
    const int m = static_cast<int>(p.next_side);
    for (int i = thread; i < count * m * m; i += kThreads) {  // neighbours: channels
      const int lane = i % count, at = i / count;
      const Window of_y(p, at / m), of_x(p, at % m);
      float sum = 0;
      for (int64_t y = of_y.begin; y < of_y.end; ++y)
        for (int64_t x = of_x.begin; x < of_x.end; ++x) sum += tile[(lane * h + y) * h + x];
      const auto area = static_cast<float>((of_y.end - of_y.begin) * (of_x.end - of_x.begin));
      p.next_input[sample * p.next_strides[0] + at * p.next_strides[1] + first + lane] = sum / area;
    }
  }
}

// Maps that do not fit in shared memory: each pixel from its tokens, at most 12 x 12 of them.
constexpr int kPixelThreads = 128;
__global__ void __launch_bounds__(kPixelThreads) pixel_kernel(const NextScaleUpdateParams p) {
  // A thread's own: arrays that a loop indexes have no place in registers.
  __shared__ UpsampleTerms terms_x[kPixelThreads], terms_y[kPixelThreads];
  UpsampleTerms &of_x = terms_x[threadIdx.x], &of_y = terms_y[threadIdx.x];
  const int64_t h = p.height, n = p.side, all = p.batch * p.channels * h * h;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPixelThreads + threadIdx.x; i < all;
       i += static_cast<int64_t>(gridDim.x) * kPixelThreads) {
    const int64_t x = i % h, y = i / h % h, channel = i / (h * h) % p.channels;
    const int64_t sample = i / (h * h * p.channels);
    make_terms(h, n, x, of_x);
    make_terms(h, n, y, of_y);
    float sum = p.phi_bias[channel] * p.phi_ratio;
    for (int a = 0; a < of_y.count; ++a)
      for (int b = 0; b < of_x.count; ++b) {
        const UpsampleTerm row = of_y.term[a], column = of_x.term[b];
        float taps[3];
        mix(p, code(p, sample, row.at * n + column.at), channel, row.tap, taps);
        const float value = column.tap == 0 ? taps[0] : column.tap == 1 ? taps[1] : taps[2];
        sum = fmaf(row.weight * column.weight, value, sum);
      }
    const int64_t from =
        sample * p.f_strides[0] + channel * p.f_strides[1] + y * p.f_strides[2] + x;
    p.f_hat_new[sample * p.f_new_strides[0] + channel * p.f_new_strides[1] +
                y * p.f_new_strides[2] + x] = p.f_hat[from] + sum;
  }
}

__global__ void __launch_bounds__(kThreads) area_kernel(const NextScaleUpdateParams p) {
  const int64_t m = p.next_side, all = p.batch * m * m * p.channels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t channel = i % p.channels, at = i / p.channels % (m * m);
    const int64_t sample = i / (p.channels * m * m);
    const float* map = p.f_hat_new + sample * p.f_new_strides[0] + channel * p.f_new_strides[1];
    const Window of_y(p, at / m), of_x(p, at % m);
    float sum = 0;
    for (int64_t y = of_y.begin; y < of_y.end; ++y)
      for (int64_t x = of_x.begin; x < of_x.end; ++x) sum += map[y * p.f_new_strides[2] + x];
    const auto area = static_cast<float>((of_y.end - of_y.begin) * (of_x.end - of_x.begin));
    p.next_input[sample * p.next_strides[0] + at * p.next_strides[1] + channel] = sum / area;
  }
}

}  // namespace

void next_scale_update_cuda(const NextScaleUpdateParams& p, const Device& device) {
  const int64_t h = p.height, n = p.side;
  // Of one channel with `rows` token rows at a time.
  const auto floats = [&](int64_t rows) {
    return 3 * n * h + (9 * n * rows > h * h ? 9 * n * rows : h * h);
  };
  if (h > kMaxHeight || floats(1) > kMemory) {
    launch(pixel_kernel, grid_for(p.batch * p.channels * h * h, kPixelThreads), kPixelThreads,
           device, p);
    const int64_t inputs = p.batch * p.next_side * p.next_side * p.channels;
    if (inputs > 0) launch(area_kernel, grid_for(inputs, kThreads), kThreads, device, p);
    return;
  }
  int64_t rows = n;
  while (floats(rows) > kMemory) --rows;
  // More channels per block read the codebook less often, but there should be enough blocks.
  int lanes = 1;
  while (2 * lanes <= kMaxLanes && 2 * lanes * floats(rows) <= kMemory &&
         p.batch * ((p.channels + 2 * lanes - 1) / (2 * lanes)) >= 264)
    lanes *= 2;
  const int64_t blocks = p.batch * ((p.channels + lanes - 1) / lanes);
  launch(next_scale_update_kernel, grid_for(blocks, 1), kThreads, device, p, lanes,
         static_cast<int>(rows));
}

}  // namespace pixleap
