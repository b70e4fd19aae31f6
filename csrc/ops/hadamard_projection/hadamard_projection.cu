#include "cuda/launch.h"
#include "ops/hadamard_projection/hadamard_projection.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kShared = kHadamardShared;  // points of a block times size
constexpr int kMaxPoints = 32;

// One number more in 32, so that strides of 16 go to different banks.
__device__ inline int64_t padded(int64_t i) { return i + i / 32; }
__device__ inline int64_t in_order(int64_t i) { return i; }

// Stages h, 2 h, ... 2^(Bits - 1) h of the transforms of `total` numbers (several points, one after
// the other), in place: each thread takes 2^Bits numbers that depend on each other alone. In the
// first stage of a round (h = 1) signs are flipped.
template <int Bits, int64_t (*Place)(int64_t)>
__device__ void stages(float* values, int64_t total, int64_t h, int64_t size,
                       const uint8_t* flips) {
  constexpr int N = 1 << Bits;
  for (int64_t t = threadIdx.x; t < total / N; t += kThreads) {
    const int64_t base = t / h * (h * N) + t % h;
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int64_t at = base + i * h;
      v[i] = values[Place(at)];
      if (flips && flips[at & (size - 1)]) v[i] = -v[i];
    }
#pragma unroll
    for (int step = 1; step < N; step *= 2)
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (!(i & step)) {
          const float a = v[i], b = v[i + step];
          v[i] = a + b, v[i + step] = a - b;
        }
#pragma unroll
    for (int i = 0; i < N; ++i) values[Place(base + i * h)] = v[i];
  }
  __syncthreads();
}

// The transforms of `total` numbers, without the factor; `flips` null: they were flipped before.
template <int64_t (*Place)(int64_t)>
__device__ void hadamard(float* values, int64_t total, int64_t size, const uint8_t* flips) {
  int64_t h = 1;
  for (; 16 * h <= size; h *= 16) {
    stages<4, Place>(values, total, h, size, flips);
    flips = nullptr;
  }
  if (8 * h == size)
    stages<3, Place>(values, total, h, size, flips);
  else if (4 * h == size)
    stages<2, Place>(values, total, h, size, flips);
  else if (2 * h == size)
    stages<1, Place>(values, total, h, size, flips);
}

// `points` points from `first` on, in `values`.
template <class T, int64_t (*Place)(int64_t)>
__device__ void project(const HadamardProjectionParams& p, float scale, int64_t first, int points,
                        float* values) {
  const T* x = static_cast<const T*>(p.x) + first * p.stride;
  const int64_t total = points * p.size;
  for (int64_t i = threadIdx.x; i < total; i += kThreads) {
    const int64_t point = i / p.size, k = i & (p.size - 1);
    float v = 0;
    if (k < p.depth && first + point < p.rows) {
      v = to_accumulate(x[point * p.stride + k]) * (p.flips[k] ? -scale : scale);
    }
    values[Place(i)] = v;
  }
  __syncthreads();
  hadamard<Place>(values, total, p.size, nullptr);
  for (int64_t round = 1; round < kHadamardRounds; ++round) {
    const uint8_t* flips = p.flips + round * p.size;
    if (p.size > 1)
      hadamard<Place>(values, total, p.size, flips);
    else if (threadIdx.x < points && flips[0])  // a point per thread, here and below
      values[Place(threadIdx.x)] = -values[Place(threadIdx.x)];
  }
  __syncthreads();
  // Neighbouring threads write neighbouring points of one projection.
  for (int64_t i = threadIdx.x; i < p.count * points; i += kThreads) {
    const int64_t projection = i / points, point = i % points;
    if (first + point < p.rows)
      p.out[projection * p.out_stride + first + point] = values[Place(point * p.size + projection)];
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    shared_kernel(const HadamardProjectionParams p, float scale, int points) {
  __shared__ float values[kShared + kShared / 32];
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * points; first < p.rows;
       first += static_cast<int64_t>(gridDim.x) * points)
    project<T, padded>(p, scale, first, points, values);
}

// Points that do not fit: each block has a slot in the caller's scratch, which L2 holds.
template <class T>
__global__ void __launch_bounds__(kThreads)
    global_kernel(const HadamardProjectionParams p, float scale) {
  float* values = p.slots + blockIdx.x * p.size;
  for (int64_t first = blockIdx.x; first < p.rows; first += gridDim.x)
    project<T, in_order>(p, scale, first, 1, values);
}

}  // namespace

void hadamard_projection_cuda(const HadamardProjectionParams& p, const Device& device) {
  const auto size = static_cast<double>(p.size);
  const auto scale = static_cast<float>(1 / (size * __builtin_sqrt(static_cast<double>(p.depth))));
  with_cuda_type(p.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) {
      if (p.size > kShared) {
        const auto blocks = static_cast<unsigned>(p.rows < p.slot_count ? p.rows : p.slot_count);
        launch(global_kernel<T>, blocks, kThreads, device, p, scale);
        return;
      }
      // As many points as fit, for whole sectors of the output, but enough blocks for the device.
      int64_t points = kShared / p.size < kMaxPoints ? kShared / p.size : kMaxPoints;
      while (points > 1 && p.rows / points < 264) points /= 2;
      const int64_t blocks = (p.rows + points - 1) / points;
      launch(shared_kernel<T>, grid_for(blocks, 1), kThreads, device, p, scale,
             static_cast<int>(points));
    }
  });
}

}  // namespace pixleap
