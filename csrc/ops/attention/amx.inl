// A block of bfloat16 queries of one head on AMX tiles.
//
// Work comes in items: a block of keys for 32 queries. While the weights of one item are made by
// vector instructions, the tiles make the scores of the next and the outputs of the one before, in
// units small enough for both to run side by side. K and V are packed once for all queries of a
// task. No query's bits depend on those beside it: they are lanes of their own, blocks of keys
// start at key 0 and have a size by the dimension, and a weight of 0 for a hidden key adds nothing.
#include "ops/attention/amx_softmax.inl"

namespace pixleap {
namespace {

constexpr int64_t kTiledFrom = 5;  // queries; fewer stream K and V

struct Item {
  int64_t chunk = -1, first, count;  // block of keys
  int64_t tile, tiles = 0;           // of queries: 1 or 2
  int64_t groups;                    // of 32 keys, up to the last that a query sees
  float* scores;                     // 16 keys by tiles, after each other
  bf16_t* weights;                   // 32 keys by tiles
  vf decay[2];
  bool decays[2];
};

// Values that are not finite are left out of the tiles, where a weight of 0 would let them through,
// and added for the queries that see them.
struct LeftOut {
  int64_t count;
  int64_t key[kTiledKeys];
};

struct TiledScratch {
  alignas(64) bf16_t q[kQueryFloats];     // tiles of 16 queries: 32 dimensions each
  alignas(64) float out[kQueryFloats];    // tiles of 16 queries: (dimensions, 16)
  alignas(64) bf16_t k[kKeyElements];     // of one block, where the cache cannot be read
  alignas(64) bf16_t v[2][kKeyElements];  // of two blocks
  alignas(64) float s[2][2 * kTiledKeys * kTile];
  alignas(64) bf16_t p[2][2 * kTiledKeys * kTile];
  alignas(64) bf16_t rows[kDepth * kAttentionMaxDim];
  float k_factor[2][kTiledKeys], v_factor[2][kTiledKeys];  // of int8
  TileState state[kMaxTiles];
  LeftOut left_out[2];
  KeyBlock keys;
  int64_t query_tokens[kMaxQueries], key_tokens[kTiledKeys], value_tokens[2][kTiledKeys];
};

template <class KV>
struct TiledBlock {
  static constexpr bool kInt8 = sizeof(KV) == 1;
  const AttentionParams& p;
  const Block& block;
  TiledScratch& s;
  const bool windowed = p.window.rows > 0;
  const int64_t depth = up_to_multiple(p.dim, kDepth), dims = up_to_multiple(p.dim, kTile);
  const int64_t step = tiled_keys(p.dim), tiles = (block.queries + kTile - 1) / kTile;
  const float to_log2 = p.scale == 0 ? 1.f : __builtin_fabsf(p.scale) * kLog2E;
  int64_t keys = 0;
  AttentionPatch patch{};
  Rows<const KV> k{}, v{}, values[2]{};  // of two blocks of keys

  Rows<const KV> rows_of(const void* data, const int64_t* strides, const float* scale,
                         const int64_t* scale_strides) const {
    const int64_t b = block.batch, g = block.head / (p.heads / p.kv_heads);
    Rows<const KV> rows{static_cast<const KV*>(data) + b * strides[0] + g * strides[1], strides[2]};
    if constexpr (kInt8) {
      rows.scale = scale + b * scale_strides[0] + g * scale_strides[1];
      rows.scale_stride = scale_strides[2];
    }
    return rows;
  }

  Rows<const KV> from(Rows<const KV> rows, const Item& item, int64_t* tokens) const {
    if (!windowed) return rows.from(item.first);
    patch_tokens(p.window, patch, item.first, item.count, tokens);
    rows.tokens = tokens;
    return rows;
  }

  // What the queries see, and their tiles. Lanes without a query do as the last one.
  template <class Q>
  void begin(const Q& q) {
    pack_queries(q, block.queries, p.dim, p.scale, s.q);
    for (int64_t t = 0; t < tiles; ++t) {
      TileState& state = s.state[t];
      state.top = splat(-kInfinity), state.sum = vf{};
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t r = std::min(t * kTile + i, block.queries - 1);
        const int64_t seen =
            windowed ? patch.size() : seen_by(p, block.batch, block.first_query + r);
        state.seen[i] = seen;
        state.least = i ? std::min(state.least, seen) : seen;
        state.most = i ? std::max(state.most, seen) : seen;
        if (!p.window.near_rows) continue;
        const AttentionWindow& w = p.window;
        const int64_t token = s.query_tokens[r];
        state.near_y[i] =
            static_cast<int32_t>(w.first_near(token / w.width, w.near_rows, w.height) - patch.y);
        state.near_x[i] =
            static_cast<int32_t>(w.first_near(token % w.width, w.near_columns, w.width) - patch.x);
      }
      keys = std::max(keys, state.most);
    }
  }

  // The next pair of tiles that sees keys of the block, or the first of the next block.
  bool next(const Item& now, int64_t number, Item& item) const {
    item.chunk = std::max(now.chunk, int64_t{0});
    item.tile = now.tiles ? now.tile + now.tiles : 0;
    for (;; item.tile += 2) {
      if (item.tile >= tiles) ++item.chunk, item.tile = 0;
      item.first = item.chunk * step;
      if (item.first >= keys) return false;
      item.tiles = std::min(tiles - item.tile, int64_t{2});
      int64_t most = s.state[item.tile].most;
      if (item.tiles > 1) most = std::max(most, s.state[item.tile + 1].most);
      item.count = std::min(keys - item.first, step);
      item.groups = (std::min(most - item.first, item.count) + kDepth - 1) / kDepth;
      if (most > item.first) break;
    }
    item.scores = s.s[number % 2], item.weights = s.p[number % 2];
    return true;
  }

  void load_keys(const Item& item) {
    const Rows<const KV> rows = from(k, item, s.key_tokens);
    pack_keys(rows, item.count, p.dim, s.k, s.keys);
    if constexpr (kInt8)
      for (int64_t j = 0; j < step; ++j)
        s.k_factor[item.chunk % 2][j] = j < item.count ? rows.factor(j) : 1.f;
  }

  void load_values(const Item& item) {
    const int64_t at = item.chunk % 2;
    const Rows<const KV> rows = values[at] = from(v, item, s.value_tokens[at]);
    LeftOut& left_out = s.left_out[at];
    left_out.count = 0;
    for (int64_t first = 0; first < item.count; first += kDepth) {
      bf16_t* to = s.v[at] + first * dims;
      const bf16_t* row[kDepth];
      const auto leave_out = [&](int64_t i) {
        row[i] = kZeros;
        left_out.key[left_out.count++] = first + i;
      };
      for (int64_t i = 0; i < kDepth; ++i) {
        const int64_t j = first + i;
        row[i] = kZeros;
        if constexpr (kInt8) s.v_factor[at][j] = 1.f;
        if (j >= item.count) continue;
        if constexpr (kInt8) {
          if (const float factor = rows.factor(j); __builtin_isfinite(factor)) {
            s.v_factor[at][j] = factor;
          } else {
            leave_out(i);
            continue;
          }
        } else if (p.dim % 8 == 0) {
          row[i] = rows[j];
          continue;
        }
        bf16_t* copy = s.rows + i * dims;
        pack_row(rows[j], p.dim, dims, copy);
        row[i] = copy;
      }
      if (pack_values(row, p.dim, to)) continue;
      for (int64_t i = 0; i < kDepth; ++i)
        if (std::any_of(row[i], row[i] + p.dim, not_finite)) leave_out(i);
      pack_values(row, p.dim, to);
    }
  }

  void score(const Item& item, int64_t group) const {
    const bf16_t* keys_at = s.keys.group[group];
    const int64_t bytes = s.keys.bytes[group];
    const bf16_t* q = s.q + item.tile * kTile * depth;
    float* to = item.scores + group * 2 * item.tiles * kSumSize;
    item.tiles > 1 ? score_keys<2>(keys_at, bytes, q, depth, to)
                   : score_keys<1>(keys_at, bytes, q, depth, to);
  }

  void raise_tops(Item& item) {
    const float unit = p.mask ? 1.f : to_log2;
    for (int64_t t = 0; t < item.tiles; ++t) {
      TileState& state = s.state[item.tile + t];
      const int64_t query = (item.tile + t) * kTile;
      const Adjustment a{p,
                         block.batch,
                         block.head,
                         block.first_query + query,
                         std::min(block.queries - query, kTile),
                         to_log2,
                         p.window.near_rows > 0,
                         patch};
      vf largest = splat(-kInfinity);
      for (int64_t j = 0; j < item.groups * kDepth; j += kTile) {
        float* scores = item.scores + (j * item.tiles + t * kTile) * kTile;
        if (kInt8 || p.mask || a.near || state.least < item.first + j + kTile)
          adjust(a, state, item.first + j, kInt8 ? s.k_factor[item.chunk % 2] + j : nullptr,
                 scores);
        largest = larger_of_rows(largest, scores);
      }
      item.decays[t] = raise_top(state, largest, unit, item.decay[t]) && item.chunk > 0;
    }
  }

  // The weights of 16 keys.
  template <int T>
  void weigh_keys(const Item& item, int64_t first) {
    TileState* state = s.state + item.tile;
    vf top[T], sum[T];
    for (int t = 0; t < T; ++t) {
      top[t] = select(state[t].top == splat(-kInfinity), vf{}, state[t].top);
      sum[t] = state[t].sum;
    }
    const int64_t group = first / kDepth, row = first % kDepth / 2;
    weigh<T, kInt8>(item.scores + first * T * kTile, top, p.mask ? 1.f : to_log2,
                    s.v_factor[item.chunk % 2] + first, sum,
                    item.weights + group * T * kTileSize + row * kDepth);
    for (int t = 0; t < T; ++t) state[t].sum = sum[t];
  }

  // Two tiles of dimensions, or the last one.
  template <int T>
  void add_pair(const Item& item, int64_t pair) {
    const int64_t d = pair * kDepth, columns = std::min(dims - d, kDepth);
    float* out = s.out + (item.tile * dims + d) * kTile;
    for (int t = 0; t < T; ++t)
      if (item.decays[t])
        for (float* x = out + t * dims * kTile; x < out + (t * dims + columns) * kTile; x += VW)
          store(x, load(x) * item.decay[t]);
    const bf16_t* values_at = s.v[item.chunk % 2] + d * kDepth;
    const auto add = [&]<int N>() {
      add_columns<T, N>(values_at, dims * kDepth, item.weights, T * kTileSize, item.groups, out,
                        dims * kTile, item.chunk == 0);
    };
    columns > kTile ? add.template operator()<2>() : add.template operator()<1>();
  }

  void add_left_out(const Item& item) {
    const LeftOut& left_out = s.left_out[item.chunk % 2];
    for (int64_t i = 0; i < left_out.count; ++i) {
      const int64_t j = left_out.key[i];
      if (j >= item.groups * kDepth) continue;
      const Rows<const KV>& rows = values[item.chunk % 2];
      for (int64_t t = 0; t < item.tiles; ++t) {
        const TileState& state = s.state[item.tile + t];
        vu pairs;
        std::memcpy(
            &pairs,
            item.weights + (j / kDepth * item.tiles + t) * kTileSize + j % kDepth / 2 * kDepth,
            sizeof pairs);
        const vf weights = bit_cast_to<vf>(j % 2 ? pairs & 0xffff0000u : pairs << 16);
        vi shown;
        for (int l = 0; l < VW; ++l) shown[l] = state.seen[l] > item.first + j ? -1 : 0;
        float* out = s.out + (item.tile + t) * dims * kTile;
        for (int64_t d = 0; d < p.dim; ++d, out += kTile) {
          float value;
          if constexpr (kInt8)
            value = static_cast<float>(rows[j][d]) * rows.factor(j);
          else
            value = to_float(rows[j][d]);
          store(out, select(shown, load(out) + weights * splat(value), load(out)));
        }
      }
    }
  }

  template <class Out>
  void finish(const Out& out) const {
    const float unit = p.mask ? 1.f : to_log2;
    for (int64_t t = 0; t < tiles; ++t) {
      const TileState& state = s.state[t];
      const vi empty = state.sum == vf{};
      const vf factor = splat(1.f) / state.sum;
      const vf lse =
          select(empty, splat(-kInfinity), state.top * splat(unit * kLn2) + vlog(state.sum));
      const int64_t left = std::min(block.queries - t * kTile, kTile);
      for (int64_t d = 0; d < p.dim; d += kTile) {
        vf rows[kTile];
        for (int i = 0; i < kTile; ++i)
          rows[i] = select(empty, vf{}, load(s.out + (t * dims + d + i) * kTile) * factor);
        transpose(rows);
        for (int64_t r = 0; r < left; ++r)
          store_upto(out[t * kTile + r] + d, rows[r], std::min(p.dim - d, kTile));
      }
      if (!p.lse) continue;
      for (int64_t r = 0; r < left; ++r) {
        const int64_t query = t * kTile + r;
        p.lse[block.batch * p.lse_strides[0] + block.head * p.lse_strides[1] +
              (windowed ? s.query_tokens[query] : block.first_query + query) * p.lse_strides[2]] =
            lse[r];
      }
    }
  }

  void units(const Item* before, const Item* after, int64_t begin, int64_t end) {
    const int64_t scores = after ? after->groups : 0;
    for (int64_t i = begin; i < end; ++i)
      if (i < scores)
        score(*after, i);
      else
        before->tiles > 1 ? add_pair<2>(*before, i - scores) : add_pair<1>(*before, i - scores);
  }

  void run() {
    const int64_t b = block.batch, h = block.head;
    Rows<const bf16_t> q{static_cast<const bf16_t*>(p.q) + b * p.q_strides[0] + h * p.q_strides[1],
                         p.q_strides[2]};
    Rows<bf16_t> out{static_cast<bf16_t*>(p.out) + b * p.out_strides[0] + h * p.out_strides[1],
                     p.out_strides[2]};
    k = rows_of(p.k, p.k_strides, p.k_scale, p.k_scale_strides);
    v = rows_of(p.v, p.v_strides, p.v_scale, p.v_scale_strides);
    if (windowed) {
      patch = p.window.keys(block.window);
      patch_tokens(p.window, p.window.queries(block.window), block.first_query, block.queries,
                   s.query_tokens);
      q.tokens = out.tokens = s.query_tokens;
    } else {
      q = q.from(block.first_query), out = out.from(block.first_query);
    }
    begin(q);

    tile_configure();
    Item items[3];
    Item *before = nullptr, *now = items;
    const int64_t pairs = (dims + kDepth - 1) / kDepth;
    if (next({}, 0, *now)) {
      load_keys(*now);
      units(nullptr, now, 0, now->groups);
      for (int64_t n = 1; now; ++n) {
        Item* after = items + n % 3;
        if (!next(*now, n, *after)) after = nullptr;
        if (!before || before->chunk != now->chunk) load_values(*now);
        if (after && after->chunk != now->chunk) load_keys(*after);
        raise_tops(*now);
        const int64_t steps = now->groups * 2;
        const int64_t all = (after ? after->groups : 0) + (before ? pairs : 0);
        for (int64_t i = 0; i < steps; ++i) {
          units(before, after, i * all / steps, (i + 1) * all / steps);
          now->tiles > 1 ? weigh_keys<2>(*now, i * kTile) : weigh_keys<1>(*now, i * kTile);
        }
        if (before) add_left_out(*before);
        before = now, now = after;
      }
      units(before, nullptr, 0, pairs);
      add_left_out(*before);
    }
    tile_release();
    finish(out);
  }
};

// Scratch of a task of either kind, which is which by the queries of the sequence or window.
union TileScratch {
  Scratch few;
  TiledScratch tiled;
  TileScratch() {}  // not zeroed
};

template <class T, class KV>
void attend_block(const AttentionParams& p, const Block& block, TileScratch& s) {
  static_assert(std::is_same_v<T, bf16_t>);
  if ((p.window.rows > 0 ? p.window.size() : p.queries) < kTiledFrom)
    return attend_block<T, KV>(p, block, s.few);
  TiledBlock<KV>{p, block, s.tiled}.run();
}

}  // namespace
}  // namespace pixleap
