// What the vector and the AMX kernels of `linear` share: tasks, the block of x, the epilogue.
//
// A task is a group of rows times a group of panels. It walks over k in blocks; per block the rows
// of x are copied to a small buffer (converted, with a constant stride), and `Tile::multiply` adds
// the product to float32 sums. Every sum runs over k in order and is owned by one task, so neither
// the number of threads nor that of rows changes a bit.
#pragma once

#include <algorithm>

#include "core/parallel.h"
#include "ops/linear/linear.h"
#include "simd/math.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kGroupColumns = 16 * kLinearPanel;  // the row stride of the sums

struct Group {
  int64_t row, rows, panel, panels;  // rows count over (batch, length)
};

template <class T>
PIXLEAP_INLINE const T* row_of(const void* data, const int64_t* strides, const LinearParams& p,
                               int64_t row) {
  return static_cast<const T*>(data) + row / p.length * strides[0] + row % p.length * strides[1];
}

// Elements [begin, begin + count) of a float32, bfloat16 or float16 vector, as float32.
void widen(const void* data, DType dtype, int64_t begin, int64_t count, float* to) {
  with_float_type(dtype, [&]<class T>() {
    const T* from = static_cast<const T*>(data) + begin;
    for_each_vector(count, [&](int64_t i, int64_t n) { store(to + i, load_upto(from + i, n)); });
  });
}

template <Activation A>
PIXLEAP_INLINE vf activate(vf v) {
  if constexpr (A == Activation::gelu) return gelu(v);
  if constexpr (A == Activation::gelu_tanh) return gelu_tanh(v);
  if constexpr (A == Activation::silu) return silu(v);
  return v;
}

template <class T, Activation A>
void finish(const LinearParams& p, const Group& g, const float* sums) {
  const int64_t first = g.panel * kLinearPanel;
  const int64_t columns =
      p.n - first < g.panels * kLinearPanel ? p.n - first : g.panels * kLinearPanel;
  float bias[kGroupColumns] = {}, gate[kGroupColumns], scale[kGroupColumns];
  if (p.bias) widen(p.bias, p.bias_dtype, first, columns, bias);
  for (int64_t i = 0; i < columns; ++i) scale[i] = p.scales ? p.scales[first + i] : 1.f;
  int64_t gate_batch = -1;
  for (int64_t r = 0; r < g.rows; ++r) {
    const int64_t row = g.row + r;
    if (p.gate && row / p.length != gate_batch) {
      gate_batch = row / p.length;
      widen(p.gate, p.gate_dtype, gate_batch * p.gate_stride + first, columns, gate);
    }
    T* out = const_cast<T*>(row_of<T>(p.out, p.out_strides, p, row)) + first;
    const T* residual =
        p.residual ? row_of<T>(p.residual, p.residual_strides, p, row) + first : nullptr;
    const float* sum = sums + r * kGroupColumns;
    for_each_vector(columns, [&](int64_t i, int64_t n) {
      vf v = activate<A>(fma(load(sum + i), load(scale + i), load(bias + i)));
      if (p.gate) v = v * load(gate + i);
      if (residual) v = load_upto(residual + i, n) + v;
      store_upto(out + i, v, n);
    });
  }
}

void finish(const LinearParams& p, const Group& g, const float* sums) {
  with_float_type(p.out_dtype, [&]<class T>() {
    switch (p.activation) {
      case Activation::none:
        return finish<T, Activation::none>(p, g, sums);
      case Activation::gelu:
        return finish<T, Activation::gelu>(p, g, sums);
      case Activation::gelu_tanh:
        return finish<T, Activation::gelu_tanh>(p, g, sums);
      case Activation::silu:
        return finish<T, Activation::silu>(p, g, sums);
    }
  });
}

// Rows of x, columns [k, k + depth), to `block` (row stride Tile::kStride), zeros up to the next
// multiple of Tile::kDepthMultiple: against those the weights are zero, but zero times what lies in
// the buffer may be NaN.
template <class Tile>
void fill(const LinearParams& p, const Group& g, int64_t k, int64_t depth,
          typename Tile::Element* block) {
  with_float_type(p.x_dtype, [&]<class T>() {
    for (int64_t r = 0; r < g.rows; ++r) {
      const T* x = row_of<T>(p.x, p.x_strides, p, g.row + r) + k;
      typename Tile::Element* to = block + r * Tile::kStride;
      // Rows are too short for the hardware's streams: two ahead, lines come before they are used.
      const int64_t later = std::min(g.row + r + 2, g.row + g.rows - 1);
      const T* ahead = row_of<T>(p.x, p.x_strides, p, later) + k;
      for_each_vector(depth, [&](int64_t i, int64_t n) {
        __builtin_prefetch(ahead + i);
        store(to + i, load_upto(x + i, n));
      });
      for (int64_t i = (depth + VW - 1) / VW * VW; i % Tile::kDepthMultiple != 0; i += VW)
        store(to + i, vf{});
    }
  });
}

// Panels per task: as many as a group holds, fewer while that leaves fewer than 16 tasks of a
// useful size (in cycles: two 8-lane multiply-adds, or 8 bytes of weights, each).
int64_t panels_per_task(int64_t row_groups, int64_t rows, int64_t panels, int64_t k) {
  int64_t size = kGroupColumns / kLinearPanel;
  while (size > 1 && row_groups * ((panels + size - 1) / size) < 16 &&
         (rows + 8) * k * size / 2 >= 20000)
    size /= 2;
  return size;
}

// Tile: Element (of the block of x), kRows and kDepth (of a block), kStride, kRowMultiple and
// kDepthMultiple (what a group's rows and a block's depth are padded to), and
//   static void multiply(const LinearParams&, const Group&, const Element* block, int64_t k,
//                        int64_t depth, float* sums);
// which adds to the sums, or sets them where k is 0.
template <class Tile>
void run_blocks(const LinearParams& p) {
  const int64_t rows = p.batch * p.length, panels = (p.n + kLinearPanel - 1) / kLinearPanel;
  const int64_t wanted = (rows + Tile::kRows - 1) / Tile::kRows;
  const int64_t even = (rows + wanted - 1) / wanted;
  const int64_t group_rows =
      (even + Tile::kRowMultiple - 1) / Tile::kRowMultiple * Tile::kRowMultiple;
  const int64_t row_groups = (rows + group_rows - 1) / group_rows;
  const int64_t group_panels = panels_per_task(row_groups, even, panels, p.k);
  const int64_t panel_groups = (panels + group_panels - 1) / group_panels;
  const int64_t tasks = row_groups * panel_groups;
  const bool tiny = 2 * rows * p.n * p.k < 100000;
  parallel_for(tasks, tiny ? tasks : 1, [&](int64_t first, int64_t last) {
    // Too much for the stack of a thread that the caller made small.
    alignas(64) static thread_local typename Tile::Element block[Tile::kRows * Tile::kStride];
    alignas(64) static thread_local float sums[Tile::kRows * kGroupColumns];
    for (int64_t task = first; task < last; ++task) {
      Group g;
      // All rows of one panel group in turn: its weights are fetched from memory once.
      g.row = task % row_groups * group_rows;
      g.rows = rows - g.row < group_rows ? rows - g.row : group_rows;
      g.panel = task / row_groups * group_panels;
      g.panels = panels - g.panel < group_panels ? panels - g.panel : group_panels;
      int64_t k = 0;
      do {  // once for K = 0, too
        const int64_t depth = p.k - k < Tile::kDepth ? p.k - k : Tile::kDepth;
        fill<Tile>(p, g, k, depth, block);
        Tile::multiply(p, g, block, k, depth, sums);
        k += Tile::kDepth;
      } while (k < p.k);
      finish(p, g, sums);
    }
  });
}

}  // namespace
}  // namespace pixleap
