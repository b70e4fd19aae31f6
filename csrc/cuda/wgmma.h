// Hopper's warpgroup products (sm_90a): 128 threads, four warps of which the first is a multiple of
// four, multiply 64 rows of a by N columns of b in steps of 16. b lies in shared memory, a there or
// in registers; both are described by 64 bits and read asynchronously.
//
// With w the warp of the group, g = lane / 4 and t = lane % 4, a thread holds
//   d[n][0], d[n][1]: row 16 w + g, columns 8 n + 2 t, 8 n + 2 t + 1    d[n][2], d[n][3]: row + 8
//   a[0..3]: as of mma.h, of the rows from 16 w on
// so that sums become the a of a next product without leaving their threads.
//
// The order of things:
//   writes to shared memory (or cp_async_wait), fence_proxy_async(), a barrier;
//   wgmma_hold(d and a), wgmma_fence() once their registers were touched, wgmma_ss or wgmma_rs,
//   wgmma_commit(), wgmma_wait<Newest>(), wgmma_hold(d); only then are d and a free, and b's place.
//
// A descriptor (address >> 4 in bits 0-13, leading offset >> 4 in 16-29, stride offset >> 4 in
// 32-45, swizzle in 62-63) names one step of 16 of an operand. Element (i, k), i of M or N, lies at
//   k innermost, swizzled over W = 128, 64 or 32 bytes:  i / 8 * stride + i % 8 * W + 2 k
//   k innermost, plain:       i / 8 * stride + k / 8 * leading + i % 8 * 16 + k % 8 * 2
//   i innermost, swizzled:    i / (W / 2) * leading + k / 8 * stride + k % 8 * W + i % (W / 2) * 2
//   i innermost, plain:       i / 8 * stride + k / 8 * leading + k % 8 * 16 + i % 8 * 2
// from its start, and of the sum's address bits 4-6 (4-5, 4) are then XORed with bits 7-9 (7-8, 7):
// rows of W bytes are aligned to 8 W. Further steps of 16 along k within W bytes begin 32 bytes on.
// (CUTLASS, cute/arch/mma_sm90_desc.hpp and cute/atom/mma_traits_sm90_gmma.hpp; PTX ISA, "Matrix
// descriptor".)
#pragma once

#include "cuda/mma.h"

// Whether this compilation has them: sm_90a, not sm_90 and not what follows it.
#if defined(PIXLEAP_CUDA_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PIXLEAP_WGMMA 1
#endif

namespace pixleap {

enum class WgmmaSwizzle : uint32_t { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };
constexpr int kWarpgroup = 128;  // threads

}  // namespace pixleap

#if defined(PIXLEAP_CUDA_EMULATE)
#include "cuda/emulate/wgmma.h"
#elif defined(PIXLEAP_WGMMA)

namespace pixleap {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most the `Newest` last groups are under way.
template <int Newest>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Newest) : "memory");
}
// Keeps what touches registers of d or a on its side of a fence or wait: before a wgmma_fence and
// behind a wgmma_wait. Without it the compiler moves what it likes, and then makes products wait.
template <class Register, int Tiles>
__device__ inline void wgmma_hold(Register (&d)[Tiles][4]) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if constexpr (std::is_same_v<Register, float>)
        asm volatile("" : "+f"(d[n][i])::"memory");
      else
        asm volatile("" : "+r"(d[n][i])::"memory");
}
// This thread's writes to shared memory, before a barrier, for products that come after it.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The list of registers of d as operands and in the text of an instruction.
#define PIXLEAP_D4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define PIXLEAP_D8(n) PIXLEAP_D4(n), PIXLEAP_D4(n + 1)
#define PIXLEAP_D32(n) PIXLEAP_D8(n), PIXLEAP_D8(n + 2), PIXLEAP_D8(n + 4), PIXLEAP_D8(n + 6)
#define PIXLEAP_TEXT8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PIXLEAP_TEXT32                       \
  PIXLEAP_TEXT8                              \
  ", "                                       \
  "%8, %9, %10, %11, %12, %13, %14, %15, "   \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define PIXLEAP_TEXT64                       \
  PIXLEAP_TEXT32                             \
  ", "                                       \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"

// `first` to `fourth`: the operands after d.
#define PIXLEAP_WGMMA_SS(n, type, text, first, second, third, fourth, ...)              \
  asm volatile("{\n.reg .pred more;\nsetp.ne.b32 more, " third                          \
               ", 0;\n"                                                                 \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" text \
               "}, " first ", " second ", more, 1, 1, 0, " fourth ";\n}\n"              \
               : __VA_ARGS__                                                            \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(int{TransposedB}))
#define PIXLEAP_WGMMA_RS(n, type, text, words, fifth, sixth, seventh, ...)              \
  asm volatile("{\n.reg .pred more;\nsetp.ne.b32 more, " sixth                          \
               ", 0;\n"                                                                 \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" text \
               "}, {" words "}, " fifth ", more, 1, 1, " seventh ";\n}\n"               \
               : __VA_ARGS__                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                    \
                 "r"(static_cast<int>(accumulate)), "n"(int{TransposedB}))

// d = a b, or d += a b: 64 x 16 by 16 x 8 Tiles for T = __nv_bfloat16 or __half. k is innermost in
// a, and in b unless TransposedB.
template <class T, bool TransposedB, int Tiles>
__device__ inline void wgmma_ss(float (&d)[Tiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  static_assert(Tiles == 2 || Tiles == 8 || Tiles == 16);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (Tiles == 2 && kBf16)
    PIXLEAP_WGMMA_SS("16", "bf16", PIXLEAP_TEXT8, "%8", "%9", "%10", "%11", PIXLEAP_D8(0));
  else if constexpr (Tiles == 2 && !kBf16)
    PIXLEAP_WGMMA_SS("16", "f16", PIXLEAP_TEXT8, "%8", "%9", "%10", "%11", PIXLEAP_D8(0));
  else if constexpr (Tiles == 8 && kBf16)
    PIXLEAP_WGMMA_SS("64", "bf16", PIXLEAP_TEXT32, "%32", "%33", "%34", "%35", PIXLEAP_D32(0));
  else if constexpr (Tiles == 8 && !kBf16)
    PIXLEAP_WGMMA_SS("64", "f16", PIXLEAP_TEXT32, "%32", "%33", "%34", "%35", PIXLEAP_D32(0));
  else if constexpr (Tiles == 16 && kBf16)
    PIXLEAP_WGMMA_SS("128", "bf16", PIXLEAP_TEXT64, "%64", "%65", "%66", "%67", PIXLEAP_D32(0),
                     PIXLEAP_D32(8));
  else if constexpr (Tiles == 16 && !kBf16)
    PIXLEAP_WGMMA_SS("128", "f16", PIXLEAP_TEXT64, "%64", "%65", "%66", "%67", PIXLEAP_D32(0),
                     PIXLEAP_D32(8));
}
template <class T, bool TransposedB, int Tiles>
__device__ inline void wgmma_rs(float (&d)[Tiles][4], const uint32_t (&a)[4], uint64_t b,
                                bool accumulate) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  static_assert(Tiles == 2 || Tiles == 8 || Tiles == 16);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (Tiles == 2 && kBf16)
    PIXLEAP_WGMMA_RS("16", "bf16", PIXLEAP_TEXT8, "%8, %9, %10, %11", "%12", "%13", "%14",
                     PIXLEAP_D8(0));
  else if constexpr (Tiles == 2 && !kBf16)
    PIXLEAP_WGMMA_RS("16", "f16", PIXLEAP_TEXT8, "%8, %9, %10, %11", "%12", "%13", "%14",
                     PIXLEAP_D8(0));
  else if constexpr (Tiles == 8 && kBf16)
    PIXLEAP_WGMMA_RS("64", "bf16", PIXLEAP_TEXT32, "%32, %33, %34, %35", "%36", "%37", "%38",
                     PIXLEAP_D32(0));
  else if constexpr (Tiles == 8 && !kBf16)
    PIXLEAP_WGMMA_RS("64", "f16", PIXLEAP_TEXT32, "%32, %33, %34, %35", "%36", "%37", "%38",
                     PIXLEAP_D32(0));
  else if constexpr (Tiles == 16 && kBf16)
    PIXLEAP_WGMMA_RS("128", "bf16", PIXLEAP_TEXT64, "%64, %65, %66, %67", "%68", "%69", "%70",
                     PIXLEAP_D32(0), PIXLEAP_D32(8));
  else if constexpr (Tiles == 16 && !kBf16)
    PIXLEAP_WGMMA_RS("128", "f16", PIXLEAP_TEXT64, "%64, %65, %66, %67", "%68", "%69", "%70",
                     PIXLEAP_D32(0), PIXLEAP_D32(8));
}

#undef PIXLEAP_WGMMA_SS
#undef PIXLEAP_WGMMA_RS

}  // namespace pixleap
#endif

#if defined(PIXLEAP_WGMMA)
namespace pixleap {

// Offsets in bytes, multiples of 16; what leading and stride are says the table above.
__device__ inline uint64_t wgmma_descriptor(const void* shared, int leading, int stride,
                                            WgmmaSwizzle swizzle) {
  const auto field = [](uint32_t bytes) { return uint64_t{(bytes & 0x3ffffu) >> 4}; };
  return field(shared_address(shared)) | field(static_cast<uint32_t>(leading)) << 16 |
         field(static_cast<uint32_t>(stride)) << 32 |
         uint64_t{static_cast<uint32_t>(swizzle)} << 62;
}
// The same, `bytes` further on.
__device__ inline uint64_t wgmma_advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}
// The first place from `shared` on that is a multiple of `Bytes`.
template <int Bytes>
__device__ inline unsigned char* align_shared(unsigned char* shared) {
  return shared + (-shared_address(shared) & (Bytes - 1));
}

}  // namespace pixleap
#endif
