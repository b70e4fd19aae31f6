#include "ops/merge_attention/merge_attention.h"

namespace pixleap {
namespace {

constexpr KernelTable<MergeAttentionParams> kernels = PIXLEAP_KERNELS_CUDA(merge_attention);
static_assert(sizeof(MergeAttentionParams) <= 4000, "what a CUDA kernel takes as arguments");

void copy_strides(const View& v, int64_t (&strides)[3]) {
  for (int i = 0; i < 3; ++i) strides[i] = v.strides[i];
}

}  // namespace

void merge_attention(std::span<const Out> out, std::span<const View> outs,
                     std::span<const View> lses) {
  const Check check("merge_attention");
  const auto parts = static_cast<int64_t>(outs.size());
  check.value(parts >= 1 && parts <= kMergeMaxParts, "outs", "1 to 16 arrays", parts);
  check.value(lses.size() == outs.size(), "lses", std::to_string(parts) + " arrays, as 'outs'",
              static_cast<int64_t>(lses.size()));
  const View& like = outs[0];
  check.dtype(like, {DType::f32, DType::bf16, DType::f16});
  check.ndim(like, 4);
  MergeAttentionParams p{};
  p.batch = like.size(0), p.heads = like.size(1), p.queries = like.size(2), p.dim = like.size(3);
  p.parts = static_cast<int>(parts);
  p.dtype = like.dtype;
  for (size_t i = 0; i < outs.size(); ++i) {
    check.same_dtype(outs[i], like);
    check.same_device(outs[i], like);
    check.same_shape(outs[i], like);
    check.unit_last_stride(outs[i]);
    check.dtype(lses[i], {DType::f32});
    check.same_device(lses[i], like);
    check.shape(lses[i], {p.batch, p.heads, p.queries});
    p.in[i].out = outs[i].data, p.in[i].lse = lses[i].as<const float>();
    copy_strides(outs[i], p.in[i].out_strides);
    copy_strides(lses[i], p.in[i].lse_strides);
  }

  const auto results = static_cast<int64_t>(out.size());
  check.value(results == 1 || results == 2, "out", "1 or 2 arrays", results);
  check.dtype(out[0], {DType::f32, DType::bf16, DType::f16});
  check.same_shape(out[0], like);
  check.unit_last_stride(out[0]);
  p.out = out[0].data, p.out_dtype = out[0].dtype;
  copy_strides(out[0], p.out_strides);
  if (results == 2) {
    check.dtype(out[1], {DType::f32});
    check.shape(out[1], {p.batch, p.heads, p.queries});
    check.no_overlap(out[1], out[0], false);
    p.lse = out[1].as<float>();
    copy_strides(out[1], p.lse_strides);
  }
  for (size_t k = 0; k < out.size(); ++k) {
    check.output(out[k]);
    check.same_device(out[k], like);
    // A row is read before it is written, and its log-sum-exps before those of its block.
    for (const View& v : outs) check.no_overlap(out[k], v, k == 0);
    for (const View& v : lses) check.no_overlap(out[k], v, k == 1);
  }
  if (p.batch > 0 && p.heads > 0 && p.queries > 0) kernels.run(check, p, like);
}

}  // namespace pixleap
