#include "core/philox.h"
#include "cuda/launch.h"
#include "ops/lincomb/lincomb.h"

namespace pixleap {
namespace {

template <class T>
__global__ void __launch_bounds__(256) lincomb_kernel(const LincombParams p) {
  using A = accumulate_t<T>;
  const int64_t total = p.rows.count * p.rows.length;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < total;
       e += step) {
    const int64_t row = e / p.rows.length, column = e % p.rows.length;
    A x[kLincombMaxInputs];
    for (int i = 0; i < p.n_in; ++i) {
      const T* in = static_cast<const T*>(p.in[i].data);
      x[i] = to_accumulate(in[row_offset(p.rows, p.in[i].strides, row) + column]);
    }
    const A noise = p.has_noise ? philox_normal(p.seed, p.offset, static_cast<uint64_t>(e)) : 0;
    for (int j = 0; j < p.n_out; ++j) {
      A sum = static_cast<A>(p.noise_scale[j]) * noise;
      for (int i = 0; i < p.n_in; ++i) sum += static_cast<A>(p.coefficients[j][i]) * x[i];
      const A limit = static_cast<A>(p.clamp);
      if (p.has_clamp) sum = sum < -limit ? -limit : sum > limit ? limit : sum;
      T* out = static_cast<T*>(p.out[j].data);
      from_accumulate(sum, out[row_offset(p.rows, p.out[j].strides, row) + column]);
    }
  }
}

}  // namespace

void lincomb_cuda(const LincombParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(lincomb_kernel<T>, grid_for(p.rows.count * p.rows.length, 256), 256, device, p);
  });
}

}  // namespace pixleap
