#include "core/philox.h"
#include "cuda/launch.h"
#include "ops/lincomb/lincomb.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// __stwb: of plain stores the compiler makes four, shared with those of the elements one by one.
template <class T>
__device__ inline void store_vectors(T* p, const Four<T>& four) {
  using Vector = std::conditional_t<sizeof(T) == 8, double2,
                                    std::conditional_t<sizeof(T) == 4, float4, uint2>>;
#pragma unroll
  for (size_t i = 0; i < sizeof(Four<T>) / sizeof(Vector); ++i) {
    Vector v;
    memcpy(&v, reinterpret_cast<const Vector*>(&four) + i, sizeof v);
    __stwb(reinterpret_cast<Vector*>(p) + i, v);
  }
}

// Elements e to e + 3 of a row; those outside [0, length) are left alone. `whole`: none is.
template <class T, class A>
__device__ inline void load_four(const void* data, int64_t at, bool whole, int64_t e,
                                 int64_t length, A (&x)[4]) {
  const T* p = static_cast<const T*>(data) + at;
  if (whole && reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = to_accumulate(four.v[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (e + k >= 0 && e + k < length) x[k] = to_accumulate(p[k]);
  }
}
template <class T, class A>
__device__ inline void store_four(void* data, int64_t at, bool whole, int64_t e, int64_t length,
                                  const A (&x)[4]) {
  T* p = static_cast<T*>(data) + at;
  if (whole && reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0) {
    Four<T> four;
#pragma unroll
    for (int k = 0; k < 4; ++k) from_accumulate(static_cast<accumulate_t<T>>(x[k]), four.v[k]);
    store_vectors(p, four);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (e + k >= 0 && e + k < length) from_accumulate(static_cast<accumulate_t<T>>(x[k]), p[k]);
  }
}

// Calls f.operator()<T>() with the element type: T itself, or, where T is void, that of `dtype`.
template <class T, class F>
__device__ inline void with_element(DType dtype, F&& f) {
  if constexpr (!std::is_same_v<T, void>) {
    f.template operator()<T>();
  } else {
    switch (dtype) {
      case DType::f32:
        return f.template operator()<float>();
      case DType::f64:
        return f.template operator()<double>();
      case DType::bf16:
        return f.template operator()<__nv_bfloat16>();
      default:
        return f.template operator()<__half>();
    }
  }
}

// A thread takes the elements of one group of four of the noise stream, as far as they lie in the
// row. A: type of the sums.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : 3)  // more would spill
    lincomb_kernel(const LincombParams p, const int64_t groups) {
  const int64_t length = p.rows.length, total = p.rows.count * groups;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < total;
       item += step) {
    const int64_t row = item / groups;
    const uint64_t start = p.first_element + static_cast<uint64_t>(row * length);
    const int64_t e = item % groups * 4 - static_cast<int64_t>(start % 4);
    if (e >= length) continue;
    const bool whole = e >= 0 && e + 4 <= length;
    const int64_t sample = lincomb_sample(p, row);
    A sum[kLincombMaxOutputs][4];
#pragma unroll
    for (int j = 0; j < kLincombMaxOutputs; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[j][k] = static_cast<A>(-0.0);
    for (int i = 0; i < p.n_in; ++i) {
      A x[4] = {}, w[4] = {};
      const int64_t at = row_offset(p.rows, p.in[i].strides, row) + e;
      with_element<T>(p.in[i].dtype,
                      [&]<class S>() { load_four<S>(p.in[i].data, at, whole, e, length, x); });
      if (p.weights[i].data) {
        const LincombOperand& o = p.weights[i];
        const int64_t from = row_offset(p.rows, o.strides, row);
        with_element<void>(o.dtype, [&]<class S>() {
          if (o.strides[p.rows.outer_dims] != 0) {
            load_four<S>(o.data, from + e, whole, e, length, w);
          } else {
            const A one = to_accumulate(static_cast<const S*>(o.data)[from]);
            for (int k = 0; k < 4; ++k) w[k] = one;
          }
        });
#pragma unroll
        for (int k = 0; k < 4; ++k) x[k] *= w[k];
      }
#pragma unroll
      for (int j = 0; j < kLincombMaxOutputs; ++j) {
        if (j >= p.n_out) break;
        const A c = static_cast<A>(lincomb_coefficient(p, sample, j, i));
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[j][k] += c * x[k];
      }
    }
    A noise[4] = {};
    if (p.has_noise) {
      const Philox4 r =
          philox4x32_10(p.seed, start / 4 + static_cast<uint64_t>(item % groups), p.offset);
      const NormalPair a = box_muller(r.v[0], r.v[1]), b = box_muller(r.v[2], r.v[3]);
      noise[0] = a.first, noise[1] = a.second, noise[2] = b.first, noise[3] = b.second;
    }
    const A limit = static_cast<A>(p.clamp);
#pragma unroll
    for (int j = 0; j < kLincombMaxOutputs; ++j) {
      if (j >= p.n_out) break;
      const A s = p.has_noise ? static_cast<A>(lincomb_noise_scale(p, sample, j)) : A{};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        A& x = sum[j][k];
        if (p.has_noise) x += s * noise[k];
        if (p.has_clamp) x = x < -limit ? -limit : x > limit ? limit : x;
      }
      const int64_t at = row_offset(p.rows, p.out[j].strides, row) + e;
      with_element<T>(p.out[j].dtype, [&]<class S>() {
        store_four<S>(p.out[j].data, at, whole, e, length, sum[j]);
      });
    }
  }
}

}  // namespace

void lincomb_cuda(const LincombParams& p, const Device& device) {
  const int64_t length = p.rows.length;
  // A row that starts within a group of the stream touches one more.
  const bool aligned = p.first_element % 4 == 0 && (length % 4 == 0 || p.rows.count == 1);
  const int64_t groups = (length + 3) / 4 + (aligned ? 0 : 1);
  const unsigned grid = grid_for(p.rows.count * groups, kThreads);
  if (p.f64_sums && p.dtype != DType::f64)
    return launch(lincomb_kernel<void, double>, grid, kThreads, device, p, groups);
  if (p.dtype == DType::other)
    return launch(lincomb_kernel<void, float>, grid, kThreads, device, p, groups);
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(lincomb_kernel<T, accumulate_t<T>>, grid, kThreads, device, p, groups);
  });
}

}  // namespace pixleap
