#include "cuda/launch.h"
#include "ops/systematic_resample/systematic_resample.h"

namespace pixleap {
namespace {

// One thread per row: rows are particle populations, a few to some hundreds. Weights are summed
// twice, since there is no room for the sums. A row that the CPU refuses gets -1.
template <class T>
__global__ void __launch_bounds__(128)
    systematic_resample_kernel(const SystematicResampleParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < p.rows;
       row += step) {
    const T* x = static_cast<const T*>(p.log_weights) + row * p.count;
    int64_t* out = p.out + row * p.count;
    double top = -INFINITY, total = 0;
    bool nan = false;
    for (int64_t i = 0; i < p.count; ++i) {
      const double v = x[i];
      nan = nan || v != v;
      top = v > top ? v : top;
    }
    if (nan || isinf(top)) {
      for (int64_t k = 0; k < p.count; ++k) out[k] = -1;
      continue;
    }
    int64_t last = 0;
    for (int64_t i = 0; i < p.count; ++i) {
      const double before = total;
      total += exp(static_cast<double>(x[i]) - top);
      if (total > before) last = i;
    }
    const double n = static_cast<double>(p.count);
    const double u =
        systematic_resample_uniform(p.seed, p.offset, p.first_row + static_cast<uint64_t>(row));
    int64_t i = 0;
    double sum = exp(static_cast<double>(x[0]) - top);
    for (int64_t k = 0; k < p.count; ++k) {
      const double position = (u + static_cast<double>(k)) * total;
      while (i < last && sum * n <= position) sum += exp(static_cast<double>(x[++i]) - top);
      out[k] = i;
    }
  }
}

}  // namespace

void systematic_resample_cuda(const SystematicResampleParams& p, const Device& device) {
  if (p.dtype == DType::f32)
    launch(systematic_resample_kernel<float>, grid_for(p.rows, 128), 128, device, p);
  else
    launch(systematic_resample_kernel<double>, grid_for(p.rows, 128), 128, device, p);
}

}  // namespace pixleap
