// cuda/mma.h without a GPU: the same functions as warp collectives, with PTX's fragments.
#pragma once

#include <cstring>

#include "cuda/emulate/engine.h"

namespace pixleap {
namespace emulate {

template <class T>
float element_of(const Lanes& lanes, unsigned lane, unsigned word, unsigned half) {
  T x;
  memcpy(&x, lanes.data[lane] + word * 4 + half * 2, sizeof x);
  return static_cast<float>(x);
}

// matrices: of 8 rows of 16 bytes; each lane's row was taken when it arrived.
template <int Matrices>
void load_matrices(const char* name, uint32_t (&r)[Matrices], const void* row, bool transposed,
                   Where where) {
  alignas(16) unsigned char mine[16] = {};
  if (current->lane < 8 * Matrices) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
      fail(std::string(name) + ": an address that is not a multiple of 16", where);
    if (!is_shared(row, 16)) fail(std::string(name) + ": not in shared memory", where);
    memcpy(mine, row, 16);
  }
  gather(
      {name, true}, 0xffffffffu, mine, sizeof mine,
      [&](const Lanes& lanes) {
        const unsigned g = current->lane / 4, t = current->lane % 4;
        for (unsigned m = 0; m < Matrices; ++m) {
          uint16_t low, high;
          const unsigned first = 8 * m;
          if (transposed) {
            memcpy(&low, lanes.data[first + 2 * t] + 2 * g, 2);
            memcpy(&high, lanes.data[first + 2 * t + 1] + 2 * g, 2);
          } else {
            memcpy(&low, lanes.data[first + g] + 4 * t, 2);
            memcpy(&high, lanes.data[first + g] + 4 * t + 2, 2);
          }
          r[m] = low | static_cast<uint32_t>(high) << 16;
        }
      },
      where);
}

}  // namespace emulate

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  emulate::Where where = emulate::Where::current()) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  emulate::gather(
      {"mma_m16n8k16", true}, 0xffffffffu, mine, sizeof mine,
      [&](const emulate::Lanes& lanes) {
        const unsigned g = emulate::current->lane / 4, t = emulate::current->lane % 4;
        for (unsigned i = 0; i < 4; ++i) {
          const unsigned lower = i / 2, column = 2 * t + i % 2;  // row g + 8 lower
          for (unsigned k = 0; k < 16; ++k) {
            const unsigned lane = k % 8 / 2, half = k % 2, upper = k / 8;
            d[i] = __builtin_fmaf(
                emulate::element_of<T>(lanes, 4 * g + lane, lower + 2 * upper, half),
                emulate::element_of<T>(lanes, 4 * column + lane, 4 + upper, half), d[i]);
          }
        }
      },
      where);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row,
                        emulate::Where where = emulate::Where::current()) {
  emulate::load_matrices("ldmatrix_x4", r, shared_row, false, where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row,
                              emulate::Where where = emulate::Where::current()) {
  emulate::load_matrices("ldmatrix_x4_trans", r, shared_row, true, where);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row,
                        emulate::Where where = emulate::Where::current()) {
  emulate::load_matrices("ldmatrix_x2", r, shared_row, false, where);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row,
                              emulate::Where where = emulate::Where::current()) {
  emulate::load_matrices("ldmatrix_x2_trans", r, shared_row, true, where);
}

inline uint32_t shared_address(const void* p, emulate::Where where = emulate::Where::current()) {
  return emulate::shared_address(p, where);
}

inline void cp_async_16(void* shared, const void* global, bool valid,
                        emulate::Where where = emulate::Where::current()) {
  emulate::copy_async(shared, global, valid, where);
}
inline void cp_async_commit() { emulate::commit_copies(); }
template <int Newest>
void cp_async_wait() {
  emulate::wait_copies(Newest);
}

}  // namespace pixleap
