// Tile operands of attention, and the products of them that one unit of work makes.
//
// Scores are S^T = K Q^T and outputs O^T = V^T W^T: lanes are queries. Rows of K are tiles as they
// lie in the cache; two rows of weights make a row of a tile by a shift and a merge; maxima and
// sums need no reduction over lanes. Q is transposed once per task, V once per task and block of
// keys. The other way round (S = Q K^T, O = W V) K is transposed, V interleaved, and maxima go over
// lanes.
#include "ops/attention/block.inl"
#include "simd/amx_shim.h"
#include "simd/amx_vector.h"

namespace pixleap {
namespace {

constexpr int64_t kTile = 16;       // queries, keys or dimensions of a tile
constexpr int64_t kDepth = 32;      // products per tile, of dimensions or keys
constexpr int64_t kTileSize = 512;  // bfloat16 numbers of an operand
constexpr int64_t kSumSize = 256;   // float32 numbers of a result
constexpr int64_t kMaxTiles = kMaxQueries / kTile;
constexpr int64_t kTiledKeys = 128;      // in a block
constexpr int64_t kKeyElements = 16384;  // of a block of keys or values

alignas(64) constexpr bf16_t kZeros[kAttentionMaxDim] = {};

constexpr int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }
constexpr int64_t tiled_keys(int64_t dim) { return dim <= 128 ? kTiledKeys : 64; }

PIXLEAP_INLINE bool not_finite(bf16_t x) { return (x.bits & 0x7f80) == 0x7f80; }

// Queries as tiles of 16 by 32 dimensions, those of a pair of dimensions together; zeros past the
// ends. A negative scale is the sign of q, a scale of 0 leaves zeros, and NaN where q is not
// finite.
void pack_queries(const Rows<const bf16_t>& q, int64_t queries, int64_t dim, float scale,
                  bf16_t* to) {
  for (int64_t first = 0; first < queries; first += kTile)
    for (int64_t d = 0; d < dim; d += kDepth, to += kTileSize) {
      vf rows[kTile];
      for (int64_t r = 0; r < kTile; ++r) {
        alignas(64) bf16_t row[kDepth] = {};
        if (first + r < queries)
          std::memcpy(row, q[first + r] + d,
                      static_cast<size_t>(std::min(kDepth, dim - d)) * sizeof(bf16_t));
        if (scale < 0)
          for (bf16_t& x : row) x.bits ^= 0x8000;
        if (scale == 0)
          for (bf16_t& x : row) x.bits = not_finite(x) ? 0x7fc0 : 0;
        std::memcpy(&rows[r], row, sizeof row);
      }
      transpose(rows);
      std::memcpy(to, rows, sizeof rows);
    }
}

// A row as bfloat16, with zeros up to `padded`, a multiple of VW.
template <class KV>
void pack_row(const KV* from, int64_t dim, int64_t padded, bf16_t* to) {
  if constexpr (sizeof(KV) == 1) {  // exact
    for_each_vector(dim,
                    [&](int64_t d, int64_t lanes) { store(to + d, load_upto(from + d, lanes)); });
    dim = up_to_multiple(dim, VW);
  } else {
    std::memcpy(to, from, static_cast<size_t>(dim) * sizeof(bf16_t));
  }
  std::memset(to + dim, 0, static_cast<size_t>(padded - dim) * sizeof(bf16_t));
}

// Keys of a block in groups of 32, where they lie if tiles can be read there.
struct KeyBlock {
  const bf16_t* group[kTiledKeys / kDepth];
  int64_t bytes[kTiledKeys / kDepth];  // from row to row
};

template <class KV>
void pack_keys(const Rows<const KV>& k, int64_t count, int64_t dim, bf16_t* to, KeyBlock& block) {
  const int64_t depth = up_to_multiple(dim, kDepth);
  for (int64_t g = 0, first = 0; first < count; ++g, first += kDepth, to += kDepth * depth) {
    if constexpr (sizeof(KV) == 2)
      if (!k.tokens && depth == dim && count - first >= kDepth) {
        block.group[g] = k[first], block.bytes[g] = k.stride * 2;
        continue;
      }
    block.group[g] = to, block.bytes[g] = depth * 2;
    for (int64_t i = 0; i < kDepth; ++i)
      if (first + i < count)
        pack_row(k[first + i], dim, depth, to + i * depth);
      else
        std::memset(to + i * depth, 0, static_cast<size_t>(depth) * sizeof(bf16_t));
  }
}

typedef uint16_t vw16 __attribute__((vector_size(64)));
typedef uint64_t vw64 __attribute__((vector_size(64)));

// The low or high halves of the 128-bit lanes of a and b, element by element in turn.
template <int N, int High, class V, int... I>
PIXLEAP_INLINE V interleave(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int kLane = N / 4;
  return __builtin_shufflevector(
      a, b, (I / kLane * kLane + I % kLane / 2 + High * kLane / 2 + (I & 1) * N)...);
}
template <class V, int High>
PIXLEAP_INLINE vw16 interleaved(vw16 a, vw16 b) {
  constexpr int kCount = 64 / sizeof(V{}[0]);
  return (vw16)interleave<kCount, High>((V)a, (V)b, std::make_integer_sequence<int, kCount>{});
}

// Eight dimensions of 32 keys as eight rows of 32 keys: each 128-bit lane is transposed alone.
// Adds to `top` the largest magnitude, as bits.
PIXLEAP_INLINE void transpose_values(const bf16_t* const (&keys)[kDepth], int64_t d, bf16_t* to,
                                     vw16& top) {
  vw16 x[8], y[8];
  for (int i = 0; i < 8; ++i) {
    typedef uint64_t v128 __attribute__((vector_size(16)));
    v128 lane[4];
    for (int j = 0; j < 4; ++j) std::memcpy(&lane[j], keys[8 * j + i] + d, sizeof lane[j]);
    const auto low = __builtin_shufflevector(lane[0], lane[1], 0, 1, 2, 3);
    const auto high = __builtin_shufflevector(lane[2], lane[3], 0, 1, 2, 3);
    x[i] = (vw16)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    const vw16 magnitude = x[i] & 0x7fff;
    top = magnitude > top ? magnitude : top;
  }
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = interleaved<vw16, 0>(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = interleaved<vw16, 1>(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = interleaved<vu, 0>(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = interleaved<vu, 1>(y[i + j], y[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = interleaved<vw64, 0>(x[i], x[i + 4]);
    y[2 * i + 1] = interleaved<vw64, 1>(x[i], x[i + 4]);
  }
  for (int i = 0; i < 8; ++i) std::memcpy(to + i * kDepth, &y[i], sizeof y[i]);
}

// 32 keys as tiles of 16 dimensions by 32 keys; the dimension is filled up with zeros. Whether all
// of them are finite.
bool pack_values(const bf16_t* const (&keys)[kDepth], int64_t dim, bf16_t* to) {
  vw16 top{};
  int64_t d = 0;
  for (; d < dim; d += 8, to += 8 * kDepth) transpose_values(keys, d, to, top);
  if (d % kTile) std::memset(to, 0, 8 * kDepth * sizeof(bf16_t));
  return !any(bit_cast_to<vi>((vu)(top >= 0x7f80)));
}

// Scores of 32 keys with T tiles of queries: tile after tile of queries for 16 keys, then for the
// others.
template <int T>
[[gnu::noinline]] void score_keys(const bf16_t* k, int64_t bytes, const bf16_t* q, int64_t depth,
                                  float* s) {
  const bf16_t* q2 = q + depth * kTile;
  const char* upper = reinterpret_cast<const char*>(k);
  const char* lower = upper + kTile * bytes;
  tile_zero(0);
  tile_zero(2);
  if constexpr (T > 1) {
    tile_zero(1);
    tile_zero(3);
  }
  for (int64_t d = 0; d < depth; d += kDepth) {
    tile_load(4, upper + 2 * d, bytes);
    tile_load(6, q + d * kTile, 64);
    tile_multiply_bf16(0, 4, 6);
    if constexpr (T > 1) {
      tile_load(7, q2 + d * kTile, 64);
      tile_multiply_bf16(1, 4, 7);
    }
    tile_load(5, lower + 2 * d, bytes);
    tile_multiply_bf16(2, 5, 6);
    if constexpr (T > 1) tile_multiply_bf16(3, 5, 7);
  }
  tile_store(0, s, 64);
  if constexpr (T > 1) tile_store(1, s + kSumSize, 64);
  tile_store(2, s + T * kSumSize, 64);
  if constexpr (T > 1) tile_store(3, s + 3 * kSumSize, 64);
}

// Adds `groups` of 32 values times weights to N tiles of dimensions and T tiles of queries.
// v_step, p_step: elements from group to group; out_step: floats from one tile of queries to the
// next.
template <int T, int N>
[[gnu::noinline]] void add_columns(const bf16_t* v, int64_t v_step, const bf16_t* p, int64_t p_step,
                                   int64_t groups, float* out, int64_t out_step, bool first) {
  float* out2 = out + out_step;
  if (first) {
    tile_zero(0);
    if constexpr (T > 1) tile_zero(1);
    if constexpr (N > 1) tile_zero(2);
    if constexpr (N > 1 && T > 1) tile_zero(3);
  } else {
    tile_load(0, out, 64);
    if constexpr (T > 1) tile_load(1, out2, 64);
    if constexpr (N > 1) tile_load(2, out + kSumSize, 64);
    if constexpr (N > 1 && T > 1) tile_load(3, out2 + kSumSize, 64);
  }
  for (; groups > 0; --groups, v += v_step, p += p_step) {
    tile_load(4, v, 64);
    tile_load(6, p, 64);
    tile_multiply_bf16(0, 4, 6);
    if constexpr (T > 1) {
      tile_load(7, p + kTileSize, 64);
      tile_multiply_bf16(1, 4, 7);
    }
    if constexpr (N > 1) {
      tile_load(5, v + kTileSize, 64);
      tile_multiply_bf16(2, 5, 6);
      if constexpr (T > 1) tile_multiply_bf16(3, 5, 7);
    }
  }
  tile_store(0, out, 64);
  if constexpr (T > 1) tile_store(1, out2, 64);
  if constexpr (N > 1) tile_store(2, out + kSumSize, 64);
  if constexpr (N > 1 && T > 1) tile_store(3, out2 + kSumSize, 64);
}

}  // namespace
}  // namespace pixleap
