// Barriers, warp collectives, atomics and access hints.
#pragma once

#include "cuda/emulate/engine.h"

#define PIXLEAP_WHERE const ::pixleap::emulate::Where& where = ::pixleap::emulate::Where::current()

inline void __syncthreads(PIXLEAP_WHERE) { pixleap::emulate::block_barrier(0, where); }
inline int __syncthreads_count(int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::block_barrier(predicate, where).count;
}
inline int __syncthreads_or(int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::block_barrier(predicate, where).any;
}
inline int __syncthreads_and(int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::block_barrier(predicate, where).all;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, PIXLEAP_WHERE) {
  pixleap::emulate::gather({"__syncwarp", false, true}, mask, "", 0, [](const auto&) {}, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(PIXLEAP_WHERE) { pixleap::emulate::fail("__trap", where); }

namespace pixleap::emulate {

template <class T>
T given_by(const Lanes& lanes, unsigned lane) {
  T value;
  if (lanes.given >> lane & 1u)
    memcpy(&value, lanes.data[lane], sizeof value);
  else
    memset(&value, 0xff, sizeof value);  // undefined: poison
  return value;
}

// source: lane -> lane whose value it takes, or itself.
template <class T, class Source>
T shuffle(const char* name, unsigned mask, const T& value, int width, const Where& where,
          Source source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(std::string(name) + ": a width that is no power of 2 up to 32", where);
  const int lane = static_cast<int>(current->lane), first = lane & ~(width - 1);
  T result;
  gather(
      {name}, mask, &value, sizeof value,
      [&](const Lanes& lanes) {
        result = given_by<T>(lanes, static_cast<unsigned>(source(lane, first)));
      },
      where);
  return result;
}

template <class T, class Combine>
T combine_lanes(const char* name, unsigned mask, T value, const Where& where, Combine combine) {
  T result{};
  gather(
      {name}, mask, &value, sizeof value,
      [&](const Lanes& lanes) {
        bool first = true;
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (!(lanes.given >> lane & 1u)) continue;
          const T x = given_by<T>(lanes, lane);
          result = first ? x : combine(result, x);
          first = false;
        }
      },
      where);
  return result;
}

inline unsigned ballot(const char* name, unsigned mask, int predicate, const Where& where) {
  const unsigned mine = predicate != 0 ? 1u << current->lane : 0u;
  return combine_lanes(name, mask, mine, where, [](unsigned a, unsigned b) { return a | b; });
}

}  // namespace pixleap::emulate

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, PIXLEAP_WHERE) {
  return pixleap::emulate::shuffle("__shfl_sync", mask, value, width, where,
                                   [&](int, int first) { return first + (from & (width - 1)); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PIXLEAP_WHERE) {
  return pixleap::emulate::shuffle(
      "__shfl_up_sync", mask, value, width, where, [&](int lane, int first) {
        return lane - static_cast<int>(delta) >= first ? lane - static_cast<int>(delta) : lane;
      });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PIXLEAP_WHERE) {
  return pixleap::emulate::shuffle("__shfl_down_sync", mask, value, width, where,
                                   [&](int lane, int first) {
                                     const int from = lane + static_cast<int>(delta);
                                     return from < first + width ? from : lane;
                                   });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, PIXLEAP_WHERE) {
  return pixleap::emulate::shuffle("__shfl_xor_sync", mask, value, width, where,
                                   [&](int lane, int first) {
                                     const int from = lane ^ bits;
                                     return from < first + width && from < 32 ? from : lane;
                                   });
}
inline unsigned __ballot_sync(unsigned mask, int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::ballot("__ballot_sync", mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::ballot("__any_sync", mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, PIXLEAP_WHERE) {
  return pixleap::emulate::ballot("__all_sync", mask, predicate, where) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, PIXLEAP_WHERE) {
  unsigned same = 0;
  pixleap::emulate::gather(
      {"__match_any_sync"}, mask, &value, sizeof value,
      [&](const auto& lanes) {
        for (unsigned lane = 0; lane < 32; ++lane)
          if ((lanes.given >> lane & 1u) && pixleap::emulate::given_by<T>(lanes, lane) == value)
            same |= 1u << lane;
      },
      where);
  return same;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, PIXLEAP_WHERE) {
  return pixleap::emulate::combine_lanes("__reduce_add_sync", mask, value, where,
                                         [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, PIXLEAP_WHERE) {
  return pixleap::emulate::combine_lanes("__reduce_min_sync", mask, value, where,
                                         [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, PIXLEAP_WHERE) {
  return pixleap::emulate::combine_lanes("__reduce_max_sync", mask, value, where,
                                         [](T a, T b) { return a > b ? a : b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, PIXLEAP_WHERE) {
  return pixleap::emulate::combine_lanes("__reduce_or_sync", mask, value, where,
                                         [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, PIXLEAP_WHERE) {
  return pixleap::emulate::combine_lanes("__reduce_and_sync", mask, value, where,
                                         [](unsigned a, unsigned b) { return a & b; });
}
#undef PIXLEAP_WHERE

// A thread runs alone between waits, so these need no atomic instruction.
namespace pixleap::emulate {
template <class T, class F>
T exchange_with(T* p, F&& f) {
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace pixleap::emulate
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old + x; });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old - x; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return x < old ? x : old; });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return x > old ? x : old; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old & x; });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old | x; });
}
template <class T>
T atomicXor(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old ^ x; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T) { return x; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return pixleap::emulate::exchange_with(p, [&](T old) { return old == expected ? x : old; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> x) {
  *p = x;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> x) {
  *p = x;
}
inline size_t __cvta_generic_to_shared(const void* p) { return reinterpret_cast<size_t>(p); }
