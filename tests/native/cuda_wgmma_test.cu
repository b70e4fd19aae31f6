// Tests of the emulated warpgroup products: each layout of the operands against a plain product,
// and what a missing or misplaced step leads to.

#include <cstdint>
#include <vector>

#include "cuda/wgmma.h"
#include "cuda_test.h"

namespace pixleap_test {
namespace {

using namespace pixleap;

constexpr int kRows = 128, kDepth = 128;  // of two warpgroups

enum class Fault {
  none,
  no_wait,
  no_commit,
  no_fence,
  no_proxy_fence,
  no_barrier,
  wrong_swizzle,
  misaligned,
  b_overwritten,
  a_overwritten,
  a_changed,
  a_warp_is_missing,
  different_operands,
  outside,
};

// Where an operand of extent x kDepth lies, written out by rows of `width` bytes (0: 8 x 8 blocks).
struct Place {
  int width, extent;
  bool transposed;  // rows are of k, not of the extent

  int columns() const { return width / 2; }
  int rows() const { return transposed ? kDepth : extent; }
  int element(int i, int k) const {
    const int row = transposed ? k : i, column = transposed ? i : k;
    if (!width) return (i / 8 * (kDepth / 8) + k / 8) * 64 + row % 8 * 8 + column % 8;
    const int turn = width == 128 ? row % 8 : width == 64 ? row / 2 % 4 : row / 4 % 2;
    const int chunk = column % columns() / 8 ^ turn;
    return (column / columns() * rows() + row) * columns() + chunk * 8 + column % 8;
  }
  int leading() const { return width ? rows() * width : 128; }
  int stride() const { return width ? 8 * width : kDepth / 8 * 128; }
  int step(int s) const {  // bytes to the next 16 of k
    if (!width) return s * 2 * leading();
    if (transposed) return s * 2 * stride();
    return s * 32 / width * leading() + s * 32 % width;
  }
  WgmmaSwizzle swizzle() const {
    return width == 128  ? WgmmaSwizzle::bytes128
           : width == 64 ? WgmmaSwizzle::bytes64
           : width == 32 ? WgmmaSwizzle::bytes32
                         : WgmmaSwizzle::none;
  }
};

struct Setting {
  Place a, b;
  bool registers;  // a
  Fault fault;
};

template <class T, int N, bool TransposedB>
__global__ void product(const T* a, const T* b, float* c, const Setting s) {
  const Fault fault = s.fault;
  unsigned char* base = align_shared<1024>(dynamic_shared());
  if (fault == Fault::misaligned) base += 128;
  T* const a_tile = reinterpret_cast<T*>(base);
  T* const b_tile = a_tile + kRows * kDepth;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, t = lane % 4;
  for (int i = thread; i < kRows * kDepth; i += 256)
    a_tile[s.a.element(i / kDepth, i % kDepth)] = a[i];
  for (int i = thread; i < N * kDepth; i += 256) b_tile[s.b.element(i / kDepth, i % kDepth)] = b[i];
  if (fault != Fault::no_proxy_fence || thread == 77) fence_proxy_async();
  if (fault != Fault::no_barrier) __syncthreads();
  if (fault == Fault::a_warp_is_missing && thread / 32 == 6) return;

  float d[N / 8][4];
  for (auto& tile : d)
    for (float& x : tile) x = 0.5f;
  const int first = thread / kWarpgroup * 64;
  const WgmmaSwizzle swizzle =
      fault == Fault::wrong_swizzle ? WgmmaSwizzle::bytes128 : s.b.swizzle();
  const uint64_t a_first =
      wgmma_descriptor(a_tile + s.a.element(first, 0), s.a.leading(), s.a.stride(), s.a.swizzle());
  uint64_t b_first = wgmma_descriptor(b_tile, s.b.leading(), s.b.stride(), swizzle);
  if (fault == Fault::outside) b_first = wgmma_advance(b_first, 1 << 16);
  if (fault == Fault::different_operands && thread == 9) b_first = wgmma_advance(b_first, 32);
  uint32_t words[kDepth / 16][4];
  for (int step = 0; step < kDepth / 16; ++step)
    for (int i = 0; i < 4; ++i)
      memcpy(&words[step][i],
             a + (first + thread % kWarpgroup / 32 * 16 + g + i % 2 * 8) * kDepth + step * 16 +
                 i / 2 * 8 + 2 * t,
             4);
  wgmma_hold(d);
  if (fault != Fault::no_fence) wgmma_fence();
  for (int step = 0; step < kDepth / 16; ++step) {
    const uint64_t b_step = wgmma_advance(b_first, s.b.step(step));
    if (s.registers)
      wgmma_rs<T, TransposedB>(d, words[step], b_step, true);
    else
      wgmma_ss<T, TransposedB>(d, wgmma_advance(a_first, s.a.step(step)), b_step, true);
    if (step == 3) wgmma_commit();  // two groups
  }
  if (fault != Fault::no_commit) wgmma_commit();
  if (fault == Fault::a_changed) words[2][1] ^= 1u;
  if (fault == Fault::b_overwritten || fault == Fault::a_overwritten) {
    T* const tile = fault == Fault::a_overwritten ? a_tile : b_tile;
    tile[s.b.element(0, 5)] = tile[s.b.element(1, 7)];
    fence_proxy_async();
    __syncthreads();
  }
  if (fault == Fault::no_wait)
    wgmma_wait<1>();
  else
    wgmma_wait<0>();
  wgmma_hold(d);
  for (int n = 0; n < N / 8; ++n)
    for (int i = 0; i < 4; ++i)
      c[(first + thread % kWarpgroup / 32 * 16 + g + i / 2 * 8) * N + n * 8 + 2 * t + i % 2] =
          d[n][i];
  __syncthreads();  // of one place with those that wait here
}

// Empty if the product is right, "wrong", or the error of the launch.
template <class T, int N>
std::string outcome(int a_width, int b_width, bool transposed, bool registers, Fault fault) {
  std::vector<T> a(kRows * kDepth), b(N * kDepth);
  std::vector<float> c(kRows * N);
  for (int i = 0; i < kRows * kDepth; ++i)
    a[i] = T(static_cast<float>((i * 37 + i / kDepth * 5) % 23 - 11));
  for (int i = 0; i < N * kDepth; ++i)
    b[i] = T(static_cast<float>((i * 29 + i / kDepth * 7) % 19 - 9) * 0.25f);
  const Setting setting{{a_width, kRows, false}, {b_width, N, transposed}, registers, fault};
  const LaunchShape shape{dim3(1), dim3(256), 16384 + (kRows + N) * kDepth * sizeof(T)};
  const std::string error = error_of([&] {
    const T *in = a.data(), *weights = b.data();
    if (transposed)
      launch(product<T, N, true>, shape, kDevice, in, weights, c.data(), setting);
    else
      launch(product<T, N, false>, shape, kDevice, in, weights, c.data(), setting);
  });
  if (!error.empty()) return error;
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < N; ++j) {
      float sum = 0.5f;  // exact: small multiples of 1/4
      for (int k = 0; k < kDepth; ++k)
        sum += static_cast<float>(a[i * kDepth + k]) * static_cast<float>(b[j * kDepth + k]);
      if (c[i * N + j] != sum) return "wrong";
    }
  return "";
}

template <class T, int N>
void test_layouts(const std::string& order) {
  for (const int width : {128, 64, 32, 0})
    for (const bool transposed : {false, true}) {
      if (transposed && width / 2 > N) continue;  // rows are wider than b
      for (const bool registers : {false, true}) {
        const std::string result =
            outcome<T, N>(registers ? 128 : width, width, transposed, registers, Fault::none);
        check(result.empty(), "wgmma, rows of " + std::to_string(width) + " bytes" +
                                  (transposed ? ", transposed" : "") +
                                  (registers ? ", registers" : "") + ", " + std::to_string(N) +
                                  " columns, " + order + ": " + result);
      }
    }
}

}  // namespace

void test_wgmma(const char* order) {
  test_layouts<__nv_bfloat16, 128>(order);
  test_layouts<__half, 64>(order);
  test_layouts<__nv_bfloat16, 16>(order);
  test_layouts<__half, 16>(order);
  const struct {
    Fault fault;
    bool registers;
    const char* text;
  } faults[] = {
      {Fault::no_wait, false, "wrong"},
      {Fault::no_commit, false, "wrong"},
      {Fault::no_fence, true, "no wgmma_fence"},
      {Fault::no_proxy_fence, false, "wrong"},
      {Fault::no_barrier, false, "wrong"},
      {Fault::wrong_swizzle, false, "wrong"},
      {Fault::misaligned, false, "not aligned to 8 rows"},
      {Fault::b_overwritten, true, "shared memory changed"},
      {Fault::a_overwritten, false, "shared memory changed"},
      {Fault::a_changed, true, "registers of a changed"},
      {Fault::a_warp_is_missing, false, "no thread can go on"},
      {Fault::different_operands, false, "different operands"},
      {Fault::outside, false, "outside of dynamic shared memory"},
  };
  for (const auto& f : faults) {
    const std::string result = outcome<__nv_bfloat16, 64>(
        128, f.fault == Fault::wrong_swizzle ? 64 : 128, false, f.registers, f.fault);
    check(has(result, f.text), "fault " + std::to_string(static_cast<int>(f.fault)) +
                                   " of wgmma, " + order + ": " + result);
  }
}

}  // namespace pixleap_test
