// cuda/wgmma.h without a GPU. A product is taken apart by its descriptors when all 128 threads have
// come; until wgmma_wait its sums are NaN, and what it reads must stay as it is: a change of the
// operands' places or registers ends the launch, as does a product that no wgmma_fence precedes.
#pragma once

#include <type_traits>

#include "cuda/emulate/engine.h"

struct __nv_bfloat16;

namespace pixleap {
namespace emulate {

struct ProductKind {
  bool bf16, a_in_registers, transposed_b;
  unsigned columns;
};

void issue_product(const ProductKind& kind, float* d, const uint32_t* a_words, uint64_t a,
                   uint64_t b, bool accumulate, Where where);
void fence_products();
void commit_products();
void wait_products(int newest, Where where);

}  // namespace emulate

inline void wgmma_fence() { emulate::fence_products(); }
inline void wgmma_commit() { emulate::commit_products(); }
template <int Newest>
void wgmma_wait(emulate::Where where = emulate::Where::current()) {
  emulate::wait_products(Newest, where);
}
template <class Register, int Tiles>
void wgmma_hold(Register (&)[Tiles][4]) {}
inline void fence_proxy_async() { emulate::fence_async(); }

template <class T, bool TransposedB, int Tiles>
void wgmma_ss(float (&d)[Tiles][4], uint64_t a, uint64_t b, bool accumulate,
              emulate::Where where = emulate::Where::current()) {
  emulate::issue_product({std::is_same_v<T, __nv_bfloat16>, false, TransposedB, Tiles * 8},
                         &d[0][0], nullptr, a, b, accumulate, where);
}
template <class T, bool TransposedB, int Tiles>
void wgmma_rs(float (&d)[Tiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate,
              emulate::Where where = emulate::Where::current()) {
  emulate::issue_product({std::is_same_v<T, __nv_bfloat16>, true, TransposedB, Tiles * 8}, &d[0][0],
                         a, 0, b, accumulate, where);
}

}  // namespace pixleap
