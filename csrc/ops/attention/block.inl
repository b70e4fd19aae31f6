// One block of queries of one head, which `attention` and `attention_varlen` are made of.
#pragma once

#include <algorithm>

#include "ops/attention/softmax.inl"

namespace pixleap {
namespace {

constexpr int64_t kTileFloats = 16384;   // of the K and V tiles
constexpr int64_t kQueryFloats = 12288;  // of the Q and O tiles
constexpr int64_t kMaxQueries = 192;     // in a task
constexpr int64_t kRows = 48;            // queries whose weights are held at a time
constexpr int64_t kMaxKeys = 96;         // in a block
constexpr int64_t kTransposeFrom = 6;    // queries, from which transposing K pays
constexpr int64_t kDirectUpTo = 2;       // queries, up to which converting K and V does not

// Whether to copy values that could be read where they are. Rows a multiple of 512 bytes apart have
// 64 lines of the first level or fewer, too few for a block: worth it for many queries, which pass
// by them again and again; 4096 bytes apart they have 8, and it soon is.
bool copies(int64_t row_bytes, int64_t queries) {
  return row_bytes % 4096 == 0 ? queries > 8 : row_bytes % 512 == 0 && queries >= kRows;
}

// Keys of a block, for a padded head dimension: the K and V tiles stay near the first cache level.
constexpr int64_t key_block(int64_t dim) { return dim <= 128 ? kMaxKeys : 48; }

struct Scratch {                          // on the stack of a task
  alignas(64) float q[kQueryFloats];      // (queries, dim)
  alignas(64) float out[kQueryFloats];    // (queries, dim), before the division by the sum
  alignas(64) float k[kTileFloats];       // (dim, keys) transposed, or (keys, dim)
  alignas(64) float v[kTileFloats];       // (keys, dim)
  alignas(64) float p[kRows * kMaxKeys];  // (queries, keys)
  alignas(64) float part[kTileRows *
                         kAttentionMaxDim];  // of out, for the keys that a group of queries sees
  Softmax softmax[kMaxQueries / VW];
  int64_t seen[kMaxQueries];                                // keys that a query sees
  int64_t query_tokens[kMaxQueries], key_tokens[kMaxKeys];  // of a window

  float decay(int64_t r) const { return softmax[r / VW].decay[r % VW]; }
  int64_t count(int64_t r) const { return softmax[r / VW].count[r % VW]; }
};

// Some queries of a head, in a window of it where there are windows.
struct Block {
  int64_t batch, head, window, first_query, queries;
};

// The tokens of `count` cells of a patch from `first` on.
void patch_tokens(const AttentionWindow& w, const AttentionPatch& patch, int64_t first,
                  int64_t count, int64_t* tokens) {
  for (int64_t i = 0; i < count;) {
    const int64_t column = (first + i) % patch.columns, row = (first + i) / patch.columns;
    const int64_t left = patch.columns - column, n = count - i < left ? count - i : left;
    const int64_t start = (patch.y + row) % w.height * w.width;
    for (int64_t x = (patch.x + column) % w.width, c = 0; c < n; ++c, ++i) {
      tokens[i] = start + x;
      x = x + 1 == w.width ? 0 : x + 1;
    }
  }
}

// Hides the cells of `keys` from `first` on that are not near `token`.
void hide_far(const AttentionWindow& w, const AttentionPatch& keys, int64_t token, int64_t first,
              int64_t count, float* scores) {
  const int64_t y = w.first_near(token / w.width, w.near_rows, w.height) - keys.y;
  const int64_t x = w.first_near(token % w.width, w.near_columns, w.width) - keys.x;
  int64_t shown = 0;  // up to which the cells are done
  for (int64_t row = std::max(y, first / keys.columns); row < y + w.near_rows; ++row) {
    const int64_t begin = std::clamp(row * keys.columns + x - first, shown, count);
    const int64_t end = std::clamp(row * keys.columns + x + w.near_columns - first, begin, count);
    std::fill(scores + shown, scores + begin, -kInfinity);
    shown = end;
    if (end == count) return;
  }
  std::fill(scores + shown, scores + count, -kInfinity);
}

// Keys that a query sees, before any mask array.
int64_t seen_by(const AttentionParams& p, int64_t b, int64_t query) {
  int64_t n = p.causal ? p.keys - p.queries + query + 1 : p.keys;
  if (p.visible) {
    const int64_t limit = p.visible[b * p.visible_strides[0] + query * p.visible_strides[1]];
    n = limit < n ? limit : n;
  }
  return n < 0 ? 0 : n;
}

// out = out * decay + weights v, for `queries` of s.p from query `row` on.
template <class T>
void add_values(Scratch& s, int64_t row, int64_t queries, int64_t block, int64_t ld, const T* v,
                int64_t stride, bool first, int64_t padded) {
  const float* weights = s.p;
  float* out = s.out + row * padded;
  float decay[kRows];
  bool all = true;  // queries see all keys of the block
  for (int64_t r = 0; r < queries; ++r) {
    decay[r] = s.decay(row + r);
    all = all && s.count(row + r) == block;
  }
  if (all) {  // a few columns of v, which stay in the first cache level, for all queries
    const auto columns = [&]<int C>(int64_t d) {
      for_row_groups<kTileRows>(queries, [&]<int R>(int64_t r) {
        value_tile<R, C>(weights + r * ld, ld, v + d, stride, block, nullptr, decay + r, first,
                         out + r * padded + d, padded);
      });
    };
    // Few queries take more columns, so that there are sums enough to hide the latency of one.
    if (queries == 1) return for_columns<8>(padded, columns);
    if (queries <= 3) return for_columns<4>(padded, columns);
    return for_columns<2>(padded, columns);
  }
  // Queries of a group are summed together up to the fewest keys that one of them sees, then alone:
  // hidden values are never touched, be they NaN, and the order of the sum is the same.
  for_row_groups<kTileRows>(queries, [&]<int R>(int64_t r) {
    int64_t common = block;
    for (int i = 0; i < R; ++i)
      common = std::min(common, std::max(s.count(row + r + i), int64_t{0}));
    for_columns<2>(padded, [&]<int C>(int64_t d) {
      value_tile<R, C>(weights + r * ld, ld, v + d, stride, common, nullptr, decay + r, true,
                       s.part + d, padded);
    });
    for (int i = 0; i < R; ++i) {
      const int64_t left = std::max(s.count(row + r + i) - common, int64_t{0});
      for_columns<8>(padded, [&]<int C>(int64_t d) {
        value_tile<1, C>(weights + (r + i) * ld + common, ld, v + common * stride + d, stride, left,
                         s.part + i * padded + d, decay + r + i, first, out + (r + i) * padded + d,
                         padded);
      });
    }
  });
}

template <class T>
void finish_row(const Scratch& s, int64_t row, int64_t dim, T* out) {
  const float sum = s.softmax[row / VW].sum[row % VW];
  const float* from = s.out + row * round_up(dim);
  const vf factor = splat(1.f / sum);
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    store_upto(out + d, sum == 0 ? vf{} : load(from + d) * factor, lanes);
  });
}

// T: of q and out; KV: of k and v.
template <class T, class KV>
void attend_block(const AttentionParams& p, const Block& block, Scratch& s) {
  const auto [b, h, window, first_query, queries] = block;
  const int64_t padded = round_up(p.dim), g = h / (p.heads / p.kv_heads);
  Rows<const T> q{static_cast<const T*>(p.q) + b * p.q_strides[0] + h * p.q_strides[1],
                  p.q_strides[2]};
  Rows<T> out{static_cast<T*>(p.out) + b * p.out_strides[0] + h * p.out_strides[1],
              p.out_strides[2]};
  Rows<const KV> k{static_cast<const KV*>(p.k) + b * p.k_strides[0] + g * p.k_strides[1],
                   p.k_strides[2]};
  Rows<const KV> v{static_cast<const KV*>(p.v) + b * p.v_strides[0] + g * p.v_strides[1],
                   p.v_strides[2]};
  if constexpr (sizeof(KV) == 1) {
    k.scale = p.k_scale + b * p.k_scale_strides[0] + g * p.k_scale_strides[1];
    v.scale = p.v_scale + b * p.v_scale_strides[0] + g * p.v_scale_strides[1];
    k.scale_stride = p.k_scale_strides[2], v.scale_stride = p.v_scale_strides[2];
  }
  const bool windowed = p.window.rows > 0, near = p.window.near_rows > 0;
  AttentionPatch patch{};  // of the keys
  if (windowed) {
    patch = p.window.keys(window);
    patch_tokens(p.window, p.window.queries(window), first_query, queries, s.query_tokens);
    q.tokens = out.tokens = s.query_tokens;
  } else {
    q = q.from(first_query), out = out.from(first_query);
  }
  // Scores stay as they are up to their softmax; a scale that would turn their order acts on q.
  const float factor = p.scale > 0 ? 1.f : p.scale;
  const float unit = static_cast<float>((p.scale > 0 ? p.scale : 1.) * kLog2E);
  convert_rows(q, queries, p.dim, factor, s.q, padded);
  int64_t keys = 0;
  for (int64_t r = 0; r < queries; ++r) {
    s.seen[r] = windowed ? patch.size() : seen_by(p, b, first_query + r);
    keys = s.seen[r] > keys ? s.seen[r] : keys;
  }
  for (int64_t r = 0; r < queries; r += VW)
    s.softmax[r / VW].max = splat(-kInfinity), s.softmax[r / VW].sum = vf{};

  // By the queries of the whole sequence, so that its bits do not depend on the tasks it is cut
  // into.
  const int64_t all = windowed ? p.window.size() : p.queries;
  const bool transposed = all >= kTransposeFrom;
  // Without conversion, padding or a list of tokens nothing has to be copied.
  const bool direct = padded == p.dim && (sizeof(KV) == 4 || all <= kDirectUpTo);
  const bool in_place = direct && !windowed && !copies(v.stride * int64_t{sizeof(KV)}, queries);
  const int64_t step = key_block(padded), copied = value_stride(p.dim);
  for (int64_t j = 0; j < keys; j += step) {
    const int64_t count = keys - j < step ? keys - j : step, ld = round_up(count);
    Rows<const KV> key = k, value = v;
    if (windowed) {
      patch_tokens(p.window, patch, j, count, s.key_tokens);
      key.tokens = value.tokens = s.key_tokens;
    } else {
      key = k.from(j), value = v.from(j);
    }
    if (transposed)
      transpose_keys(key, count, p.dim, s.k);
    else if (!direct)
      convert_rows(key, count, p.dim, 1.f, s.k, padded);
    if (!in_place) convert_rows(value, count, p.dim, 1.f, s.v, copied);
    for (int64_t row = 0; row < queries; row += kRows) {
      const int64_t rows = queries - row < kRows ? queries - row : kRows;
      const float* some = s.q + row * padded;
      if (transposed)
        score_rows(some, rows, padded, s.k, ld, p.dim, s.p);
      else if (direct)
        score_dots(some, rows, key, count, padded, s.p);
      else
        score_dots(some, rows, Rows<const float>{s.k, padded}, count, padded, s.p);
      for (int64_t r = 0; r < rows; r += VW) {
        Softmax& softmax = s.softmax[(row + r) / VW];
        const int64_t n = rows - r < VW ? rows - r : VW;
        for (int64_t i = 0; i < n; ++i) {
          const int64_t seen = s.seen[row + r + i] - j;
          softmax.count[i] = seen < count ? seen : count;
          if (near)
            hide_far(p.window, patch, s.query_tokens[row + r + i], j, count, s.p + (r + i) * ld);
          if (p.mask)
            mask_row<T>(p, b, h, first_query + row + r + i, j, softmax.count[i], unit,
                        s.p + (r + i) * ld);
        }
        soften_rows(softmax, n, p.mask ? 1.f : unit, s.p + r * ld, ld);
      }
      if (!in_place) {
        add_values(s, row, rows, count, ld, s.v, copied, j == 0, padded);
        continue;
      }
      if constexpr (sizeof(KV) == 1)  // the weights take the scale; their sum is done
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < s.count(row + r); ++i) s.p[r * ld + i] *= value.factor(i);
      add_values(s, row, rows, count, ld, value.data, value.stride, j == 0, padded);
    }
  }

  for (int64_t r = 0; r < queries; ++r) {
    finish_row(s, r, p.dim, out[r]);
    const float sum = s.softmax[r / VW].sum[r % VW], max = s.softmax[r / VW].max[r % VW];
    if (p.lse)
      p.lse[b * p.lse_strides[0] + h * p.lse_strides[1] +
            (windowed ? s.query_tokens[r] : first_query + r) * p.lse_strides[2]] =
          sum == 0 ? -kInfinity : max * kLn2 + vlog(splat(sum))[0];
  }
}

// Calls f.template operator()<T, KV>() for the types of the queries and of the cache.
template <class F>
void with_attention_types(const AttentionParams& p, F&& f) {
  with_float_type(p.dtype, [&]<class T>() {
    if (p.kv_dtype == DType::i8)
      f.template operator()<T, int8_t>();
    else
      f.template operator()<T, T>();
  });
}

}  // namespace
}  // namespace pixleap
