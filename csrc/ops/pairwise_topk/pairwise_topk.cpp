#include "ops/pairwise_topk/pairwise_topk.h"

#include <algorithm>

namespace pixleap {
namespace {

constexpr KernelTable<PairwiseTopkParams> kernels = PIXLEAP_KERNELS_CUDA(pairwise_topk);

}  // namespace

void pairwise_topk(const Out& distances, const Out& indices, std::span<const Out> workspace,
                   const View& x, const Optional& y, int64_t k) {
  const Check check("pairwise_topk");
  PairwiseTopkParams p{};
  std::vector<float> scratch;
  check.ndim(x, 2);
  const int64_t others = y.defined && y.ndim == 2 ? y.size(0) : x.size(0) - 1;
  p.k = k;
  p.kept = std::min(k + kTopkSpare, others);
  p.sets = pairwise_sets(check, x, y, scratch, workspace, x.size(0) * p.kept);
  check.value(k >= 1 && k <= kTopkMax, "k", "1 to 64", k);
  check.value(k <= others || x.size(0) == 0, "k",
              "at most the " + std::to_string(others) + " rows there are", k);
  check.dtype(distances, {DType::f64});
  check.dtype(indices, {DType::i64});
  for (const View* out :
       {static_cast<const View*>(&distances), static_cast<const View*>(&indices)}) {
    check.same_device(*out, x);
    check.shape(*out, {x.size(0), k});
    check.contiguous(*out);
    check.output(*out);
    check.no_overlap(*out, x, false);
    check.no_overlap(*out, y, false);
  }
  check.no_overlap(distances, indices, false);
  if (distances.numel() == 0) return;
  std::vector<float> candidates(p.sets.rest ? 0 : static_cast<size_t>(x.size(0) * p.kept));
  std::vector<int32_t> rows(candidates.size());
  p.candidates = candidates.data();
  p.rows = rows.data();
  p.distances = distances.as<double>();
  p.indices = indices.as<int64_t>();
  kernels.run(check, p, x);
}

}  // namespace pixleap
