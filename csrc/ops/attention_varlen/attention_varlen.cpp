#include "ops/attention_varlen/attention_varlen.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/ragged.h"

namespace pixleap {
namespace {

constexpr KernelTable<AttentionVarlenParams> kernels = PIXLEAP_KERNELS_AMX_CUDA(attention_varlen);

// Tasks, those of most work first, and chunks of them of about the same work: with a few long
// sequences among many short ones, no thread is left alone with a long one at the end.
struct Plan {
  std::vector<AttentionTask> tasks;
  std::vector<int64_t> chunks{0};

  Plan(std::vector<AttentionSequence>& sequences, int64_t heads, int64_t dim) {
    int64_t longest = 1;
    for (const AttentionSequence& s : sequences) longest = std::max(longest, s.queries);
    const int64_t rows = attention_task_queries(
        dim, longest, heads * static_cast<int64_t>(sequences.size()), num_threads());
    const auto work = [&](const AttentionSequence& s) {
      return std::min(s.queries, rows) * s.keys * dim + 1;
    };
    std::stable_sort(sequences.begin(), sequences.end(),
                     [&](const auto& a, const auto& b) { return work(a) > work(b); });
    int64_t in_chunk = 0;
    for (size_t i = 0; i < sequences.size(); ++i)
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t query = 0; query < sequences[i].queries; query += rows) {
          tasks.push_back(
              {static_cast<int64_t>(i), head, query, std::min(sequences[i].queries - query, rows)});
          in_chunk += work(sequences[i]);
          if (in_chunk < kAttentionGrain) continue;
          chunks.push_back(static_cast<int64_t>(tasks.size()));
          in_chunk = 0;
        }
    if (in_chunk) chunks.push_back(static_cast<int64_t>(tasks.size()));
  }
};

}  // namespace

void attention_varlen(const Out& out, const View& q, const View& k, const View& v,
                      const Optional& k_scale, const Optional& v_scale, const View& offsets,
                      const View& lengths, const Optional& slots, bool causal, double scale) {
  const Check check("attention_varlen");
  check.ndim(q, 3);
  check.ndim(k, 4);
  AttentionVarlenParams p{};
  AttentionParams& one = p.shared;
  one.batch = 1, one.heads = q.shape[1], one.dim = q.shape[2], one.kv_heads = k.shape[1];
  check.shape(k, {-1, -1, -1, one.dim});
  attention_keys(check, one, q, k, v, k_scale, v_scale);
  check.same_shape(out, q);
  check.same_dtype(out, q);
  check.same_device(out, q);
  check.unit_last_stride(out);
  check.output(out);
  check.no_overlap(out, q, true);  // a task has read its queries before it writes them
  for (const View* x : std::initializer_list<const View*>{&k, &v, &k_scale, &v_scale})
    check.no_overlap(out, *x, false);

  const std::vector<int64_t> begins = sequence_offsets(check, offsets, q.shape[0]);
  const auto n = static_cast<int64_t>(begins.size()) - 1;
  const std::vector<int64_t> keys = host_integers(check, lengths, n);
  const std::vector<int64_t> where = sequence_slots(check, slots, n, k);
  const int64_t capacity = k.shape[2];
  std::vector<AttentionSequence> sequences;
  sequences.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const int64_t queries = begins[i + 1] - begins[i], least = causal ? queries : 0;
    if (keys[i] < least || keys[i] > capacity)
      check_sequence(check, false, "lengths",
                     "numbers from 0 to " + std::to_string(capacity) +
                         (causal ? ", and with a causal mask at least as many keys as queries (" +
                                       std::to_string(queries) + ")"
                                 : std::string()),
                     keys[i], static_cast<int64_t>(i));
    if (queries > 0) sequences.push_back({begins[i], queries, where[i], keys[i]});
  }
  if (out.numel() == 0) return;

  one.out = out.data;
  for (size_t i = 0; i < 2; ++i) {  // (rows, heads) there, (heads, rows) here
    one.q_strides[2 - i] = q.strides[i];
    one.out_strides[2 - i] = out.strides[i];
  }
  one.causal = causal;
  one.scale = static_cast<float>(scale);
  const Plan plan(sequences, one.heads, one.dim);
  p.sequences = sequences.data();
  p.sequence_count = static_cast<int64_t>(sequences.size());
  p.tasks = plan.tasks.data();
  p.chunks = plan.chunks.data();
  p.chunk_count = static_cast<int64_t>(plan.chunks.size()) - 1;
  kernels.run(check, p, q);
}

}  // namespace pixleap
