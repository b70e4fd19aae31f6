// Square transposes and the sum over lanes of VW vectors at once, by exchanging halves, quarters,
// ... of pairs of vectors.
#pragma once

#include <utility>

#include "simd/vec.h"

namespace pixleap {
namespace {

// Lanes whose index has bit H clear come from a (low: as they are, high: from H lanes up), the
// others from b.
template <int H, int... I>
PIXLEAP_INLINE vf exchange_low(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I & H ? VW + I - H : I)...);
}
template <int H, int... I>
PIXLEAP_INLINE vf exchange_high(vf a, vf b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I & H ? VW + I : I + H)...);
}
using Lanes = std::make_integer_sequence<int, VW>;

// rows[i][j] <-> rows[j][i].
template <int H = VW / 2>
PIXLEAP_INLINE void transpose(vf (&rows)[VW]) {
  for (int i = 0; i < VW; ++i) {
    if (i & H) continue;
    const vf a = rows[i], b = rows[i + H];
    rows[i] = exchange_low<H>(a, b, Lanes{});
    rows[i + H] = exchange_high<H>(a, b, Lanes{});
  }
  if constexpr (H > 1) transpose<H / 2>(rows);
}

// Lane i of the result is f over the lanes of rows[i], in pairs. Uses `rows` up.
template <int H = VW / 2, class F>
PIXLEAP_INLINE vf reduce_rows(vf (&rows)[VW], F&& f) {
  for (int i = 0; i < H; ++i)
    rows[i] = f(exchange_low<H>(rows[i], rows[i + H], Lanes{}),
                exchange_high<H>(rows[i], rows[i + H], Lanes{}));
  if constexpr (H > 1) return reduce_rows<H / 2>(rows, f);
  return rows[0];
}
PIXLEAP_INLINE vf reduce_add_rows(vf (&rows)[VW]) {
  return reduce_rows(rows, [](vf a, vf b) { return a + b; });
}
PIXLEAP_INLINE vf reduce_max_rows(vf (&rows)[VW]) { return reduce_rows(rows, vmax); }

}  // namespace
}  // namespace pixleap
