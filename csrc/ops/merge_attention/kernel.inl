#include "core/parallel.h"
#include "ops/merge_attention/merge_attention.h"
#include "simd/math.h"

namespace pixleap {
namespace {

constexpr int64_t kGrain = 1 << 16;  // numbers read per chunk of tasks
constexpr int kUnroll = 4;           // vectors summed at a time
static_assert(kMergeRows % VW == 0);

constexpr float kInfinity = __builtin_inff();

// Where a row of (batch, heads, queries) stands.
struct Place {
  int64_t b, h, l;

  Place(const MergeAttentionParams& p, int64_t row)
      : b(row / p.queries / p.heads), h(row / p.queries % p.heads), l(row % p.queries) {}
  void next(const MergeAttentionParams& p) {
    if (++l < p.queries) return;
    l = 0;
    if (++h < p.heads) return;
    h = 0;
    ++b;
  }
  int64_t offset(const int64_t (&strides)[3]) const {
    return b * strides[0] + h * strides[1] + l * strides[2];
  }
};

// Weights of the parts of up to kMergeRows rows; 0 where a part saw no key.
struct Weights {
  alignas(64) float weight[kMergeMaxParts][kMergeRows];
  alignas(64) float lse[kMergeRows];
  bool sees[kMergeMaxParts][kMergeRows];

  void set(const MergeAttentionParams& p, Place at, int64_t rows) {
    const int64_t whole = (rows + VW - 1) / VW * VW;
    for (int64_t r = 0; r < whole; ++r) {
      for (int i = 0; i < p.parts; ++i) {
        weight[i][r] = r < rows ? p.in[i].lse[at.offset(p.in[i].lse_strides)] : 0.f;
        sees[i][r] = weight[i][r] != -kInfinity;  // NaN sees
      }
      at.next(p);
    }
    for (int64_t r = 0; r < whole; r += VW) {
      vf top = load(weight[0] + r), total = {};
      for (int i = 1; i < p.parts; ++i) top = vmax(top, load(weight[i] + r));
      const vf base = select(top == splat(-kInfinity), vf{}, top);
      for (int i = 0; i < p.parts; ++i) {
        const vf w = vexp(load(weight[i] + r) - base);
        total = total + w;
        store(weight[i] + r, w);
      }
      store(lse + r, base + vlog(total));
      for (int i = 0; i < p.parts; ++i)
        store(weight[i] + r, load(weight[i] + r) / select(total == vf{}, splat(1.f), total));
    }
  }
};

// The parts of one row that saw a key: garbage in the others is not read.
template <class T>
struct Row {
  const T* from[kMergeMaxParts];
  float weight[kMergeMaxParts];
  int parts = 0;
};

template <int U, class T, class Out>
PIXLEAP_INLINE void merge_vectors(const Row<T>& row, Out* to, int64_t i, int64_t n) {
  vf sum[U] = {};
  for (int k = 0; k < row.parts; ++k) {
    const vf w = splat(row.weight[k]);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sum[u] = fma(w, load_upto(row.from[k] + i + u * VW, n), sum[u]);
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) store_upto(to + i + u * VW, sum[u], n);
}

template <class T, class Out>
PIXLEAP_INLINE void merge_row(const Row<T>& row, Out* to, int64_t dim) {
  int64_t i = 0;
  for (; i + kUnroll * VW <= dim; i += kUnroll * VW) merge_vectors<kUnroll>(row, to, i, VW);
  for (; i + VW <= dim; i += VW) merge_vectors<1>(row, to, i, VW);
  if (i < dim) merge_vectors<1>(row, to, i, dim - i);
}

template <class T, class Out>
void merge_block(const MergeAttentionParams& p, Place at, int64_t rows) {
  Weights weights;
  weights.set(p, at, rows);
  for (int64_t r = 0; r < rows; ++r, at.next(p)) {
    Row<T> row;
    for (int i = 0; i < p.parts; ++i) {
      if (!weights.sees[i][r]) continue;
      row.from[row.parts] = static_cast<const T*>(p.in[i].out) + at.offset(p.in[i].out_strides);
      row.weight[row.parts++] = weights.weight[i][r];
    }
    merge_row(row, static_cast<Out*>(p.out) + at.offset(p.out_strides), p.dim);
    if (p.lse) p.lse[at.offset(p.lse_strides)] = weights.lse[r];
  }
}

template <class T, class Out>
void merge(const MergeAttentionParams& p) {
  const int64_t rows = p.batch * p.heads * p.queries;
  const int64_t grain = kGrain / (kMergeRows * (p.dim + 8) * p.parts) + 1;
  parallel_for((rows + kMergeRows - 1) / kMergeRows, grain, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kMergeRows, left = rows - begin;
      merge_block<T, Out>(p, Place(p, begin), left < kMergeRows ? left : kMergeRows);
    }
  });
}

}  // namespace

void PIXLEAP_KERNEL(merge_attention)(const MergeAttentionParams& p) {
  with_float_type(p.dtype, [&]<class T>() {
    with_float_type(p.out_dtype, [&]<class Out>() { merge<T, Out>(p); });
  });
}

}  // namespace pixleap
