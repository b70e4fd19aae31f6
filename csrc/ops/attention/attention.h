// Scaled dot-product attention over strided heads, with masks that skip what they hide.
//   out[b, h, i] = sum_j softmax_j(scale * q[b, h, i] . k[b, g, j] + mask[b, h, i, j]) v[b, g, j]
#pragma once

#include <span>

#include "core/dispatch.h"
#include "core/host_device.h"

namespace pixleap {

constexpr int kAttentionMaxDim = 256;
constexpr int64_t kAttentionGrain = 1 << 18;  // multiply-adds per chunk of tasks

// On a GPU up to so many queries of a head have blocks of their own; of 16-bit keys, so many.
constexpr int64_t kAttentionStreamUpTo = 4, kAttentionStreamHalfUpTo = 2;
constexpr int64_t kAttentionChunk = 256;  // keys, which are then summed apart
PIXLEAP_HD static inline int64_t attention_chunks(int64_t keys) {
  return (keys + kAttentionChunk - 1) / kAttentionChunk;
}

// Queries of a task, which share what is made of a block of keys: as many as its scratch holds,
// fewer where threads would have nothing to do. No bit of the result depends on it.
static inline int64_t attention_task_queries(int64_t dim, int64_t queries, int64_t parts,
                                             int threads) {
  int64_t most = dim <= 64 ? 192 : dim <= 128 ? 96 : 48;
  const auto tasks = [&] { return parts * ((queries + most - 1) / most); };
  while (most > 24 && tasks() < 4 * threads) most /= 2;
  const int64_t blocks = (queries + most - 1) / most;  // of about one size
  return blocks > 1 ? ((queries + blocks - 1) / blocks + 23) / 24 * 24 : most;
}

// A rectangle of a grid of tokens; windows wrap around the edges of the grid.
struct AttentionPatch {
  int64_t y, x, rows, columns;

  PIXLEAP_HD int64_t size() const { return rows * columns; }
};

// Tokens of a height x width grid, row after row. Without `near`, they attend within windows of
// rows x columns of the grid rolled back by (down, right), which wraps around. With it, each token
// attends to the near_rows x near_columns ones around it, at an edge to the outermost that many;
// the windows are then the queries of a task.
struct AttentionWindow {
  int64_t height, width, rows, columns, down, right;  // rows is 0 where there are no windows
  int64_t near_rows, near_columns;

  PIXLEAP_HD int64_t across() const { return (width + columns - 1) / columns; }
  PIXLEAP_HD int64_t count() const { return (height + rows - 1) / rows * across(); }
  PIXLEAP_HD int64_t size() const { return rows * columns; }
  // Token number `cell` of a window of a grid that windows divide.
  PIXLEAP_HD int64_t token(int64_t window, int64_t cell) const {
    const int64_t y = window / across() * rows + cell / columns + down;
    const int64_t x = window % across() * columns + cell % columns + right;
    return y % height * width + x % width;
  }
  PIXLEAP_HD AttentionPatch queries(int64_t window) const {
    const int64_t y = window / across() * rows, x = window % across() * columns;
    return {y + down, x + right, height - y < rows ? height - y : rows,
            width - x < columns ? width - x : columns};
  }
  PIXLEAP_HD AttentionPatch keys(int64_t window) const {
    const AttentionPatch q = queries(window);
    if (!near_rows) return q;
    const int64_t y = first_near(q.y, near_rows, height), x = first_near(q.x, near_columns, width);
    return {y, x, first_near(q.y + q.rows - 1, near_rows, height) + near_rows - y,
            first_near(q.x + q.columns - 1, near_columns, width) + near_columns - x};
  }
  // The first of the `near` places that the one at `place` sees, of `extent`.
  PIXLEAP_HD static int64_t first_near(int64_t place, int64_t near, int64_t extent) {
    const int64_t first = place - near / 2;
    return first < 0 ? 0 : first > extent - near ? extent - near : first;
  }
};

struct AttentionParams {
  DType dtype;           // of q and out
  DType kv_dtype;        // of k and v: dtype, or i8 with k_scale and v_scale
  const void* q;         // (batch, heads, queries, dim)
  const void* k;         // (batch, kv_heads, keys, dim)
  const void* v;         // (batch, kv_heads, keys, dim)
  void* out;             // (batch, heads, queries, dim)
  float* lse;            // (batch, heads, queries) or null
  const float* k_scale;  // (batch, kv_heads, keys): k is k_scale times the integers; null unless i8
  const float* v_scale;  // (batch, kv_heads, keys)
  const void* mask;      // (batch, heads, queries, keys) added to the scores, or null
  DType mask_dtype;
  const int64_t* visible;  // (batch, queries): how many keys a query sees, or null
  // In elements, 0 where an extent of 1 is repeated. The last one of q, k, v and out is 1.
  int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3], lse_strides[3];
  int64_t k_scale_strides[3], v_scale_strides[3], mask_strides[4], visible_strides[2];
  int64_t batch, heads, kv_heads, queries, keys, dim;
  AttentionWindow window;  // beside no other mask; queries = keys = height * width
  bool causal;             // query i sees keys up to keys - queries + i
  float scale;
  float* split;  // (batch, heads, queries, chunks of keys, dim + 2) for a CUDA kernel, or null
};

// What both fronts ask of queries and keys beyond the ranks; fills what `p` holds of keys and
// values. k.ndim is 4; p.heads, p.kv_heads and p.dim are set.
void attention_keys(const Check& check, AttentionParams& p, const View& q, const View& k,
                    const View& v, const Optional& k_scale, const Optional& v_scale);

// `out` is the output alone or with the log-sum-exp of the scores after it.
// `scratch`: none, or one array for a GPU to split the keys of few queries over blocks: no bit of
// the result depends on it. `window`: the eight numbers of AttentionWindow, or none.
void attention(std::span<const Out> out, std::span<const Out> scratch, const View& q, const View& k,
               const View& v, const Optional& k_scale, const Optional& v_scale,
               const Optional& mask, const Optional& visible, std::span<const int64_t> window,
               bool causal, double scale);

PIXLEAP_DECLARE_KERNELS(attention, AttentionParams)

}  // namespace pixleap
