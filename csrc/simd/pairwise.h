// All pairs of rows of two sets (or of one with itself) in tiles: packed panels, the matrix product
// by the micro-kernel of simd/gemm.h, and an epilogue on the tile while it is in the cache.
//
// Tiles are done in rounds in which no two touch the same block of rows or of columns, so an
// epilogue may add to what belongs to its rows and columns without locks, and in an order that
// depends on neither the threads nor the timing. Of one set with itself only the tiles on and
// below the diagonal are computed.
#pragma once

#include <array>
#include <utility>

#include "core/pairwise.h"
#include "core/parallel.h"
#include "simd/gemm.h"
#include "simd/transpose.h"

namespace pixleap {
namespace {

constexpr int64_t kPairRows = VW == 16 ? 112 : 96;  // of a block of rows that stays in L2
constexpr int64_t kTileMax = 4 * kPairRows;         // rows and columns of a tile, at most
constexpr int64_t kPairDepth = 512;                 // a panel of it takes 32 KiB
constexpr int64_t kPairStride = kPairDepth + 16;
constexpr int kPairPanels = VW == 16 ? 2 : 1;  // panels side by side in the micro-kernel
constexpr int64_t kPairStep = kGemmPanel * kPairPanels;

struct Tile {
  int64_t row, rows, column, columns;
  int64_t block;      // of columns
  bool diagonal;      // only columns below the row count
  const float* dots;  // (rows, kTileMax) products of the (centred, scaled) rows

  // How many columns of row r count.
  int64_t limit(int64_t r) const { return diagonal && r < columns ? r : columns; }
};

// How the columns are packed. Up to kPairPacked numbers are packed once for all tiles; beyond that
// each tile packs its own, which for tiles of the full size costs a few percent.
constexpr int64_t kPairPacked = int64_t{1} << 25;  // 128 MiB

struct PackedColumns {
  float* data;             // (depth blocks, blocks, padded / 16, depth of the block, 16), or null
  int64_t blocks, padded;  // padded: columns of a block, up to a whole number of micro-kernels
  float* at(int64_t block, int64_t k, int64_t depth) const {
    return data + blocks * padded * k + block * padded * depth;
  }
};

// Parts of the memory that a thread works in.
struct PairBuffers {
  static constexpr int64_t kRows = kPairRows * kPairStride, kPanels = kTileMax * kPairDepth,
                           kSums = kTileMax * kTileMax;
  float *rows, *panels, *sums;
};

template <class T>
PIXLEAP_INLINE const T* pair_row(const PairwiseSet& set, int64_t row) {
  return static_cast<const T*>(set.data) + row * set.stride;
}

// Elements [k, k + n) of a row as they enter the product.
template <class T>
PIXLEAP_INLINE vf pair_load(const PairwiseSets& s, const T* row, int64_t k, int64_t n) {
  return (load_upto(row + k, n) - load_upto(s.centre + k, n)) * splat(s.scale);
}

template <class T>
void pack_rows(const PairwiseSets& s, int64_t first, int64_t rows, int64_t k, int64_t depth,
               float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = pair_row<T>(s.x, first + r);
    for_each_vector(depth, [&](int64_t i, int64_t n) {
      store(to + r * kPairStride + i, pair_load(s, from, k + i, n));
    });
  }
}

// Rows of y as the columns of panels (depth, 16); zeros up to a whole number of micro-kernels.
template <class T>
void pack_columns(const PairwiseSets& s, int64_t first, int64_t columns, int64_t k, int64_t depth,
                  float* to) {
  for (int64_t c = 0; c < (columns + kPairStep - 1) / kPairStep * kPairStep; c += VW) {
    float* panel = to + c / kGemmPanel * kGemmPanel * depth + c % kGemmPanel;
    for (int64_t i = 0; i < depth; i += VW) {
      const int64_t n = depth - i < VW ? depth - i : VW;
      vf block[VW];
      for (int64_t j = 0; j < VW; ++j)
        block[j] = c + j < columns ? pair_load(s, pair_row<T>(s.y, first + c + j), k + i, n) : vf{};
      transpose(block);
      for (int64_t j = 0; j < n; ++j) store(panel + (i + j) * kGemmPanel, block[j]);
    }
  }
}

template <int... R>
constexpr auto pair_micro_table(std::integer_sequence<int, R...>) {
  return std::array<GemmMicro, sizeof...(R)>{
      {gemm_micro<float, R + 1, kPairPanels, kPairStride, kTileMax>...}};
}
constexpr auto kPairMicro = pair_micro_table(std::make_integer_sequence<int, kGemmMaxRows>{});

// Products of a tile into `buffers.sums`.
template <class T>
void multiply_tile(const PairwiseSets& s, const Tile& t, const PackedColumns& packed,
                   const PairBuffers& buffers) {
  int64_t k = 0;
  do {  // once for depth 0, too
    const int64_t depth = s.depth - k < kPairDepth ? s.depth - k : kPairDepth;
    const float* panels = packed.data ? packed.at(t.block, k, depth) : buffers.panels;
    if (!packed.data) pack_columns<T>(s, t.column, t.columns, k, depth, buffers.panels);
    const int64_t groups = (t.rows + kPairRows - 1) / kPairRows;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = t.rows * g / groups, rows = t.rows * (g + 1) / groups - first;
      pack_rows<T>(s, t.row + first, rows, k, depth, buffers.rows);
      const int64_t blocks = (rows + kGemmMaxRows - 1) / kGemmMaxRows;
      for (int64_t c = 0; c < t.columns; c += kPairStep) {
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t row = rows * i / blocks, end = rows * (i + 1) / blocks;
          if (t.diagonal && first + end <= c + 1) continue;  // all of it above the diagonal
          kPairMicro[static_cast<size_t>(end - row - 1)](
              buffers.rows + row * kPairStride, panels + c * depth, depth * kGemmPanel, depth,
              buffers.sums + (first + row) * kTileMax + c, k == 0, {});
        }
      }
    }
    k += kPairDepth;
  } while (k < s.depth);
}

// A set is cut into blocks of whole micro-kernels of columns: 16 or a multiple of it where it is
// large, so that a round has work for many threads.
struct PairBlocks {
  int64_t rows, steps, count;
  explicit PairBlocks(int64_t n) : rows(n), steps((n + kPairStep - 1) / kPairStep) {
    const int64_t least = (n + kTileMax - 1) / kTileMax, small = (n + 63) / 64;
    count = least > 16 ? (least + 15) / 16 * 16 : small < 16 ? small : 16;
  }
  int64_t begin(int64_t block) const {
    const int64_t row = steps * block / count * kPairStep;
    return row < rows ? row : rows;
  }
  int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
  int64_t largest() const { return (steps + count - 1) / count * kPairStep; }
};

template <class Epilogue>
void run_rounds(const PairwiseSets& s, const PackedColumns& packed, const Epilogue& epilogue) {
  const PairBlocks x_cut(s.x.rows), y_cut(s.y.rows);
  const int64_t x_blocks = x_cut.count, y_blocks = y_cut.count;
  const bool tiny = s.x.rows * s.y.rows * (s.depth + 8) < 500000;
  // blocks_of(task, i, j) gives the blocks of a task, or false.
  const auto round = [&](int64_t tasks, auto&& blocks_of) {
    parallel_for(tasks, tiny ? tasks : 1, [&](int64_t first, int64_t last) {
      const auto run = [&](float* memory) {
        const PairBuffers buffers{memory, memory + PairBuffers::kRows,
                                  memory + PairBuffers::kRows + PairBuffers::kPanels};
        for (int64_t task = first; task < last; ++task) {
          int64_t i = 0, j = 0;
          if (!blocks_of(task, i, j)) continue;
          Tile t;
          t.row = x_cut.begin(i), t.rows = x_cut.size(i);
          t.column = y_cut.begin(j), t.columns = y_cut.size(j);
          t.block = j;
          t.diagonal = s.symmetric && i == j;
          t.dots = buffers.sums;
          with_float_type(s.dtype, [&]<class T>() { multiply_tile<T>(s, t, packed, buffers); });
          epilogue(t);
        }
      };
      with_scratch(PairBuffers::kRows + PairBuffers::kPanels + PairBuffers::kSums, run);
    });
  };
  if (!s.symmetric) {
    const int64_t rounds = x_blocks > y_blocks ? x_blocks : y_blocks;
    for (int64_t r = 0; r < rounds; ++r)
      round(x_blocks, [&](int64_t task, int64_t& i, int64_t& j) {
        i = task, j = (task + r) % rounds;
        return j < y_blocks;
      });
    return;
  }
  round(x_blocks, [](int64_t task, int64_t& i, int64_t& j) {
    i = j = task;
    return true;
  });
  // A round-robin tournament: one block stays, the others go round. An odd one out waits.
  const int64_t ring = x_blocks + x_blocks % 2 - 1;
  for (int64_t r = 0; r < ring; ++r)
    round((ring + 1) / 2, [&](int64_t task, int64_t& i, int64_t& j) {
      const int64_t a = task == 0 ? ring : (r + task) % ring;
      const int64_t b = task == 0 ? r : (r - task + ring) % ring;
      i = a > b ? a : b, j = a > b ? b : a;
      return i < x_blocks && i != j;
    });
}

// Calls epilogue(tile) for every tile of pairs.
template <class Epilogue>
void for_each_tile(const PairwiseSets& s, const Epilogue& epilogue) {
  if (s.x.rows == 0 || s.y.rows == 0) return;
  const PairBlocks cut(s.y.rows);
  const int64_t blocks = cut.count;
  PackedColumns packed{nullptr, blocks, cut.largest()};
  const int64_t size = blocks * packed.padded * s.depth;
  if (size > kPairPacked) return run_rounds(s, packed, epilogue);
  const auto run = [&](float* memory) {
    packed.data = memory;
    const int64_t parts = (s.depth + kPairDepth - 1) / kPairDepth;
    parallel_for(parts * blocks, size < 100000 ? parts * blocks : 1, [&](int64_t a, int64_t b) {
      for (int64_t task = a; task < b; ++task) {
        const int64_t k = task / blocks * kPairDepth, block = task % blocks;
        const int64_t depth = s.depth - k < kPairDepth ? s.depth - k : kPairDepth;
        with_float_type(s.dtype, [&]<class T>() {
          pack_columns<T>(s, cut.begin(block), cut.size(block), k, depth,
                          packed.at(block, k, depth));
        });
      }
    });
    run_rounds(s, packed, epilogue);
  };
  with_scratch(size, run);
}

// A common centre (the mean of up to 256 rows of each set: any centre gives the distances, one
// among the points the least rounding) and a power of two that brings the largest coordinate to
// about 1, so that squares neither overflow nor vanish.
template <class T>
void centre_and_scale(PairwiseSets& s) {
  const int64_t x_step = s.x.rows / 256 + 1, y_step = s.y.rows / 256 + 1;
  parallel_for((s.depth + 63) / 64, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t k = block * 64, n = s.depth - k < 64 ? s.depth - k : 64;
      double sums[64] = {};
      int64_t count = 0;
      const auto add = [&](const PairwiseSet& set, int64_t step) {
        for (int64_t row = 0; row < set.rows; row += step, ++count) {
          const T* from = pair_row<T>(set, row) + k;
          for_each_vector(n, [&](int64_t i, int64_t lanes) {
            float values[VW];
            store(values, load_upto(from + i, lanes));
            for (int64_t l = 0; l < lanes; ++l) sums[i + l] += static_cast<double>(values[l]);
          });
        }
      };
      add(s.x, x_step);
      if (!s.symmetric) add(s.y, y_step);
      for (int64_t i = 0; i < n; ++i)
        s.centre[k + i] = static_cast<float>(sums[i] / static_cast<double>(count));
    }
  });
  float most = 0;
  const auto largest = [&](const PairwiseSet& set) {
    parallel_for(set.rows, 64, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const T* from = pair_row<T>(set, row);
        vf m{};
        for_each_vector(s.depth,
                        [&](int64_t k, int64_t n) { m = vmax(m, vabs(pair_load(s, from, k, n))); });
        set.norms[row] = reduce_max(m);
      }
    });
    for (int64_t row = 0; row < set.rows; ++row)
      if (set.norms[row] > most) most = set.norms[row];
  };
  largest(s.x);
  if (!s.symmetric) largest(s.y);
  int exponent = 0;
  if (most > 0 && most <= __FLT_MAX__) __builtin_frexpf(most, &exponent);
  exponent = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  s.scale = __builtin_ldexpf(1.0f, -exponent);
}

template <class T>
void squared_norms(const PairwiseSets& s, const PairwiseSet& set) {
  parallel_for(set.rows, 64, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const T* from = pair_row<T>(set, row);
      double total = 0;
      for (int64_t k = 0; k < s.depth; k += 128) {
        vf sum{};
        for_each_vector(s.depth - k < 128 ? s.depth - k : 128, [&](int64_t i, int64_t n) {
          const vf v = pair_load(s, from, k + i, n);
          sum = fma(v, v, sum);
        });
        total += static_cast<double>(reduce_add(sum));
      }
      set.norms[row] = static_cast<float>(total);
    }
  });
}

// Fills centre, scale and norms of a copy of `sets`, after which
//   norm_x[i] + norm_y[j] - 2 dots[i, j]
// is scale^2 times the squared distance, up to distance_error() of the two norms.
PIXLEAP_INLINE PairwiseSets prepare_distances(const PairwiseSets& sets) {
  PairwiseSets s = sets;
  with_float_type(s.dtype, [&]<class T>() {
    centre_and_scale<T>(s);
    squared_norms<T>(s, s.x);
    if (!s.symmetric) squared_norms<T>(s, s.y);
  });
  return s;
}

// The squared distance is wrong by at most this times the sum of the two squared norms: depth
// roundings of the product, fewer than 64 of the norms, the centring and the final sum. Plus
// kDistanceFloor where squares were too small for a float.
PIXLEAP_INLINE float distance_error(int64_t depth) {
  return static_cast<float>(depth + 64) * 0x1.01p-24f;
}
constexpr float kDistanceFloor = 1e-36f;

PIXLEAP_INLINE vf squared_distance(vf norms, vf dots) {
  const vf d = norms - (dots + dots);
  return select(d < vf{}, vf{}, d);  // NaN stays
}

// In float64, from the rows as they were given; the same bits on every ISA. Stops early once the
// sum is above `enough`.
template <class T>
double exact_squared_distance(const T* a, const T* b, int64_t depth, double enough) {
  double sums[8] = {};
  double total = 0;
  for (int64_t k = 0; k < depth; k += 256) {
    const int64_t n = depth - k < 256 ? depth - k : 256;
    float x[256 + VW], y[256 + VW];
    for_each_vector(n, [&](int64_t i, int64_t lanes) {
      store(x + i, load_upto(a + k + i, lanes));
      store(y + i, load_upto(b + k + i, lanes));
    });
    for (int64_t i = n; i % 8 != 0; ++i) x[i] = y[i] = 0;
    for (int64_t i = 0; i < n; i += 8)
      for (int64_t l = 0; l < 8; ++l) {
        const double d = static_cast<double>(x[i + l]) - static_cast<double>(y[i + l]);
        sums[l] += d * d;
      }
    total =
        ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
    if (total > enough) break;
  }
  return total;
}

}  // namespace
}  // namespace pixleap
