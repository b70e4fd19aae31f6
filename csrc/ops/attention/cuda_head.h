// What a block of a CUDA kernel of attention works on, and the keys that its queries see.
#pragma once

#include <climits>

#include "cuda/launch.h"
#include "ops/attention/attention.h"

namespace pixleap {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2OfE = 1.44269504f, kLogOf2 = 0.693147181f;

// A neighbourhood's queries are numbered from here on, apart from the keys: they are cells of
// another patch of the grid.
constexpr int64_t kNearQueries = int64_t{1} << 40;

// Where the cells of a window or of a patch are on the grid, which they may wrap around.
struct AttentionCells {
  int64_t y, x, columns;
};

// Some queries of a head, in a window of it where there are windows, or of a sequence in it.
struct AttentionHead {
  int64_t q, k, v, out;  // where the head or the sequence begins, in elements
  int64_t k_scale, v_scale;
  int64_t batch, head;                 // for masks and lse
  AttentionCells cells, near_queries;  // of the window; or keys, and queries, of a neighbourhood
  int64_t queries, keys, first_query;
};

// slot: the entry of k and v; row: where the queries begin in that of q.
__device__ inline AttentionHead attention_head(const AttentionParams& p, int64_t batch,
                                               int64_t slot, int64_t head, int64_t row,
                                               int64_t queries, int64_t keys, int64_t first_query) {
  const int64_t g = head / (p.heads / p.kv_heads);
  AttentionHead h;
  h.q = batch * p.q_strides[0] + head * p.q_strides[1] + row * p.q_strides[2];
  h.out = batch * p.out_strides[0] + head * p.out_strides[1] + row * p.out_strides[2];
  h.k = slot * p.k_strides[0] + g * p.k_strides[1];
  h.v = slot * p.v_strides[0] + g * p.v_strides[1];
  h.k_scale = slot * p.k_scale_strides[0] + g * p.k_scale_strides[1];
  h.v_scale = slot * p.v_scale_strides[0] + g * p.v_scale_strides[1];
  h.batch = batch, h.head = head;
  h.cells = h.near_queries = {0, 0, 1};
  h.queries = queries, h.keys = keys, h.first_query = first_query;
  return h;
}

// Work number `index` of attention: blocks of `rows` queries of a head run side by side, those that
// see most keys first.
__device__ inline AttentionHead attention_work(const AttentionParams& p, int64_t index, int rows) {
  const AttentionWindow& w = p.window;
  const int64_t windows = w.rows ? w.count() : 1, queries = w.rows ? w.size() : p.queries;
  const int64_t blocks = (queries + rows - 1) / rows, part = index / blocks;
  const int64_t block = blocks - 1 - index % blocks, window = part % windows;
  const int64_t head = part / windows % p.heads, batch = part / windows / p.heads;
  AttentionHead h =
      attention_head(p, batch, batch, head, 0, queries, w.rows ? queries : p.keys, block * rows);
  if (!w.rows) return h;
  const AttentionPatch q = w.queries(window);
  h.cells = {q.y, q.x, q.columns};
  if (!w.near_rows) return h;
  // The keys that some query of the block sees. At an edge of the grid blocks may have no queries.
  h.near_queries = h.cells;
  const int64_t left = q.size() - h.first_query, here = left < rows ? left : rows;
  const int64_t top = h.first_query / q.columns;
  const int64_t bottom = here > 0 ? (h.first_query + here - 1) / q.columns : top;
  h.cells.y = w.first_near(q.y + top, w.near_rows, w.height);
  h.cells.x = w.first_near(q.x, w.near_columns, w.width);
  h.cells.columns =
      w.first_near(q.x + q.columns - 1, w.near_columns, w.width) + w.near_columns - h.cells.x;
  h.keys = (w.first_near(q.y + bottom, w.near_rows, w.height) + w.near_rows - h.cells.y) *
           h.cells.columns;
  h.queries = kNearQueries + q.size();
  h.first_query += kNearQueries;
  return h;
}

// How many of them there are.
inline int64_t attention_works(const AttentionParams& p, int rows) {
  const bool windowed = p.window.rows > 0;
  const int64_t queries = windowed ? p.window.size() : p.queries;
  return p.batch * p.heads * (windowed ? p.window.count() : 1) * ((queries + rows - 1) / rows);
}

// Line and column of a cell among its window's or its patch's. No window has 2^32 cells: that
// would be 2^64 scores. A division of 64 bits is a call.
struct AttentionPlace {
  uint32_t line, column;
};
__device__ inline AttentionPlace attention_place(const AttentionCells& cells, int64_t cell) {
  const auto c = static_cast<uint32_t>(cell), columns = static_cast<uint32_t>(cells.columns);
  const uint32_t line = c / columns;
  return {line, c - line * columns};
}

// The row of q, k, v, out or lse of a query or key.
__device__ inline int64_t attention_row(const AttentionParams& p, const AttentionHead& h,
                                        int64_t cell) {
  const AttentionWindow& w = p.window;
  if (!w.rows) return cell;
  const bool query = cell >= kNearQueries;
  const AttentionCells& cells = query ? h.near_queries : h.cells;
  const AttentionPlace at = attention_place(cells, query ? cell - kNearQueries : cell);
  int64_t y = cells.y + at.line, x = cells.x + at.column;
  if (y >= w.height) y -= w.height;
  if (x >= w.width) x -= w.width;
  return y * w.width + x;
}

// Keys that a query sees, before any mask array; 0 past the last query.
__device__ inline int64_t attention_seen(const AttentionParams& p, const AttentionHead& h,
                                         int64_t query) {
  if (query >= h.queries) return 0;
  int64_t n = p.causal ? h.keys - h.queries + query + 1 : h.keys;
  if (p.visible) {
    const int64_t limit = p.visible[h.batch * p.visible_strides[0] + query * p.visible_strides[1]];
    n = limit < n ? limit : n;
  }
  return n < 0 ? 0 : n;
}

struct SeenKeys {
  int64_t least, most;
};
// Of `rows` queries; all lanes get it. Without rows the most is 0.
__device__ inline SeenKeys seen_keys(const int64_t* seen, int rows, int lane) {
  SeenKeys s{LLONG_MAX, 0};
  for (int r = lane; r < rows; r += 32) {
    s.least = seen[r] < s.least ? seen[r] : s.least;
    s.most = seen[r] > s.most ? seen[r] : s.most;
  }
  for (int step = 16; step; step /= 2) {
    const int64_t least = __shfl_xor_sync(kAllLanes, s.least, step);
    const int64_t most = __shfl_xor_sync(kAllLanes, s.most, step);
    s.least = least < s.least ? least : s.least;
    s.most = most > s.most ? most : s.most;
  }
  return s;
}

__device__ inline void attention_store(void* data, DType dtype, int64_t i, float x) {
  switch (dtype) {
    case DType::bf16:
      return from_accumulate(x, static_cast<__nv_bfloat16*>(data)[i]);
    case DType::f16:
      return from_accumulate(x, static_cast<__half*>(data)[i]);
    default:
      static_cast<float*>(data)[i] = x;
  }
}

// Whether a neighbourhood hides a key of its patch from a query.
__device__ inline bool attention_far(const AttentionParams& p, const AttentionHead& h,
                                     int64_t query, int64_t key) {
  const AttentionWindow& w = p.window;
  const AttentionPlace from = attention_place(h.near_queries, query - kNearQueries);
  // The first line and column that it sees; they do not change in a loop over keys. In 32 bits: all
  // are below 2^31, and registers are few.
  const auto first = [](int64_t start, uint32_t step, int64_t near, int64_t extent,
                        int64_t corner) {
    int64_t place = start + step;
    if (place >= extent) place -= extent;
    return static_cast<uint32_t>(AttentionWindow::first_near(place, near, extent) - corner);
  };
  const uint32_t y = first(h.near_queries.y, from.line, w.near_rows, w.height, h.cells.y);
  const uint32_t x = first(h.near_queries.x, from.column, w.near_columns, w.width, h.cells.x);
  const AttentionPlace at = attention_place(h.cells, key);
  return at.line - y >= static_cast<uint32_t>(w.near_rows) ||
         at.column - x >= static_cast<uint32_t>(w.near_columns);
}

// Whether masked_score has to be asked for. Near: there may be a neighbourhood.
template <bool Near>
__device__ inline bool attention_masked(const AttentionParams& p) {
  return p.mask || (Near && p.window.near_rows);
}

// A score with the mask array's addend, in units of ln 2.
__device__ inline float added_score(const AttentionParams& p, const AttentionHead& h, int64_t query,
                                    int64_t key, float score) {
  const int64_t i = h.batch * p.mask_strides[0] + h.head * p.mask_strides[1] +
                    query * p.mask_strides[2] + key * p.mask_strides[3];
  return fmaf(element_at(p.mask, p.mask_dtype, i), kLog2OfE, score);
}

// That, or a score as a neighbourhood hides it.
template <bool Near>
__device__ inline float masked_score(const AttentionParams& p, const AttentionHead& h,
                                     int64_t query, int64_t key, float score) {
  if (Near && p.window.near_rows) return attention_far(p, h, query, key) ? -INFINITY : score;
  return added_score(p, h, query, key, score);
}

// max and sum of a query's scores in units of ln 2.
__device__ inline void store_lse(const AttentionParams& p, const AttentionHead& h, int64_t query,
                                 float max, float sum) {
  if (!p.lse) return;
  p.lse[h.batch * p.lse_strides[0] + h.head * p.lse_strides[1] +
        attention_row(p, h, query) * p.lse_strides[2]] =
      sum == 0.f ? -INFINITY : fmaf(max, kLogOf2, logf(sum));
}

// What scores lose before the exponential: 0 where all are minus infinity.
__device__ inline float softmax_shift(float max) { return max == -INFINITY ? 0.f : max; }

// Launches kernel(p, first work) on as many blocks as there are works, or kernel(p, first block,
// parts) on `parts` blocks for each.
template <class Kernel, class... Parts>
void launch_attention(Kernel kernel, const AttentionParams& p, int rows, size_t shared_bytes,
                      const Device& device, int threads = kAttentionThreads, Parts... parts) {
  constexpr int64_t kMost = 1 << 30;
  const int64_t blocks = (attention_works(p, rows) * ... * parts);
  for (int64_t first = 0; first < blocks; first += kMost) {
    const int64_t left = blocks - first;
    const LaunchShape shape{dim3(static_cast<unsigned>(left < kMost ? left : kMost)),
                            dim3(static_cast<unsigned>(threads)), shared_bytes};
    launch(kernel, shape, device, p, first, parts...);
  }
}

template <class F>
void with_padded_dim(int64_t dim, F&& f) {
  if (dim <= 64)
    f.template operator()<64>();
  else if (dim <= 128)
    f.template operator()<128>();
  else
    f.template operator()<256>();
}

}  // namespace pixleap
