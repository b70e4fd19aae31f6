#include "core/pairwise.h"  // with_scratch
#include "core/parallel.h"
#include "ops/hadamard_projection/hadamard_projection.h"
#include "simd/transpose.h"

namespace pixleap {
namespace {

// A lane is a point, so that the transform needs no shuffles and its result is stored as rows of
// the transposed output. values: (size, VW).
template <class T>
void load_points(const HadamardProjectionParams& p, int64_t first, int64_t lanes, float scale,
                 float* values) {
  const T* x = static_cast<const T*>(p.x) + first * p.stride;
  for (int64_t k = 0; k < p.depth; k += VW) {
    const int64_t n = p.depth - k < VW ? p.depth - k : VW;
    vf block[VW];
    for (int64_t j = 0; j < VW; ++j)
      block[j] = j < lanes ? load_upto(x + j * p.stride + k, n) : vf{};
    transpose(block);
    for (int64_t i = 0; i < n; ++i)
      store(values + (k + i) * VW, block[i] * splat(p.flips[k + i] ? -scale : scale));
  }
  for (int64_t k = p.depth; k < p.size; ++k) store(values + k * VW, vf{});
}

// In place, without the factor 1 / sqrt(size): two butterflies per pass over the values.
void hadamard(float* values, int64_t size) {
  int64_t h = 1;
  for (; 4 * h <= size; h *= 4) {
    for (int64_t base = 0; base < size; base += 4 * h) {
      float* at = values + base * VW;
      for (int64_t i = 0; i < h * VW; i += VW) {
        const vf a = load(at + i), b = load(at + h * VW + i);
        const vf c = load(at + 2 * h * VW + i), d = load(at + 3 * h * VW + i);
        const vf ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
        store(at + i, ab + cd);
        store(at + h * VW + i, a_b + c_d);
        store(at + 2 * h * VW + i, ab - cd);
        store(at + 3 * h * VW + i, a_b - c_d);
      }
    }
  }
  if (h == size) return;
  for (int64_t i = 0; i < h * VW; i += VW) {
    const vf a = load(values + i), b = load(values + h * VW + i);
    store(values + i, a + b);
    store(values + h * VW + i, a - b);
  }
}

}  // namespace

void PIXLEAP_KERNEL(hadamard_projection)(const HadamardProjectionParams& p) {
  // Of three transforms and of the padding; first, so that nothing grows beyond the norm of x.
  const auto size = static_cast<double>(p.size);
  const auto scale = static_cast<float>(1 / (size * __builtin_sqrt(static_cast<double>(p.depth))));
  const int64_t groups = (p.rows + VW - 1) / VW;
  parallel_for(groups, (1 << 17) / (p.size * VW) + 1, [&](int64_t begin, int64_t end) {
    const auto run = [&](float* values) {
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * VW, left = p.rows - first, lanes = left < VW ? left : VW;
        with_float_type(p.dtype,
                        [&]<class T>() { load_points<T>(p, first, lanes, scale, values); });
        hadamard(values, p.size);
        for (int64_t round = 1; round < kHadamardRounds; ++round) {
          for (int64_t k = 0; k < p.size; ++k)
            if (p.flips[round * p.size + k]) store(values + k * VW, -load(values + k * VW));
          hadamard(values, p.size);
        }
        for (int64_t i = 0; i < p.count; ++i)
          store_upto(p.out + i * p.out_stride + first, load(values + i * VW), lanes);
      }
    };
    with_scratch(p.size * VW, run);
  });
}

}  // namespace pixleap
