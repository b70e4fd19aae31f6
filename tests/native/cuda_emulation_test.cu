// Tests of csrc/cuda/emulate: that it runs sound kernels rightly in any order, and that it shows
// what is wrong with faulty ones. Run without arguments.

#include "cuda_test.h"

#include <cstring>
#include <vector>

#include "cuda/mma.h"

namespace {

using namespace pixleap;
using namespace pixleap_test;
using emulate::Order;

// Calls test(order, seed) for both orders and ten shuffles.
void in_every_order(const std::function<void(const char*)>& test) {
  emulate::set_order(Order::forward);
  test("forward");
  emulate::set_order(Order::reverse);
  test("reverse");
  for (uint64_t seed = 0; seed < 10; ++seed) {
    emulate::set_order(Order::shuffle, seed);
    test(("shuffle " + std::to_string(seed)).c_str());
  }
}

// ---- Sound kernels ----

__global__ void reverse_blocks(const int* in, int* out, bool barrier) {
  __shared__ int tile[128];
  tile[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x];
  if (barrier) __syncthreads();
  out[blockIdx.x * 128 + threadIdx.x] = tile[127 - threadIdx.x];
}

std::vector<int> reversed(bool barrier) {
  std::vector<int> in(512), out(512);
  for (int i = 0; i < 512; ++i) in[i] = i;
  launch(reverse_blocks, 4u, 128, kDevice, in.data(), out.data(), barrier);
  return out;
}

bool is_reversed(const std::vector<int>& out) {
  for (int i = 0; i < 512; ++i)
    if (out[i] != i / 128 * 128 + 127 - i % 128) return false;
  return true;
}

// Neighbours within a warp, through shared memory.
__global__ void rotate_warp(int* out, bool sync) {
  __shared__ int row[32];
  row[threadIdx.x] = static_cast<int>(threadIdx.x) * 3;
  if (sync) __syncwarp();
  out[threadIdx.x] = row[(threadIdx.x + 1) % 32];
}

bool rotates(bool sync) {
  int out[32];
  launch(rotate_warp, 1u, 32, kDevice, static_cast<int*>(out), sync);
  for (int i = 0; i < 32; ++i)
    if (out[i] != (i + 1) % 32 * 3) return false;
  return true;
}

// A second write before all have read the first: the barrier at the end of the loop is missing.
__global__ void broadcast_twice(int* out, bool second_barrier) {
  __shared__ int value;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == static_cast<unsigned>(round) * 40) value = round + 7;
    __syncthreads();
    out[round * 64 + static_cast<int>(threadIdx.x)] = value;
    if (second_barrier) __syncthreads();
  }
}

bool broadcasts(bool second_barrier) {
  int out[128];
  launch(broadcast_twice, 1u, 64, kDevice, static_cast<int*>(out), second_barrier);
  for (int i = 0; i < 128; ++i)
    if (out[i] != i / 64 + 7) return false;
  return true;
}

__global__ void collectives(unsigned* out) {
  constexpr unsigned kAll = 0xffffffffu;
  const unsigned lane = threadIdx.x % 32;
  unsigned* o = out + threadIdx.x * 16;
  o[0] = __shfl_sync(kAll, lane * 10, 5);
  o[1] = __shfl_sync(kAll, lane, 3, 8);
  o[2] = __shfl_up_sync(kAll, lane, 2u);
  o[3] = __shfl_down_sync(kAll, lane, 3u, 16);
  o[4] = __shfl_xor_sync(kAll, lane, 9);
  o[5] = __ballot_sync(kAll, lane % 3 == 0);
  o[6] = static_cast<unsigned>(__any_sync(kAll, lane == 31));
  o[7] = static_cast<unsigned>(__all_sync(kAll, lane < 31));
  o[8] = __reduce_add_sync(kAll, lane);
  o[9] = __reduce_max_sync(kAll, lane ^ 5u);
  // Halves of a warp that diverge, each by its own mask.
  if (lane < 16)
    o[10] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  else
    o[10] = __reduce_min_sync(0xffff0000u, lane);
  __syncwarp();
  o[11] = static_cast<unsigned>(__syncthreads_count(threadIdx.x % 2));
  o[12] = static_cast<unsigned>(__syncthreads_or(threadIdx.x == 40));
  o[13] = static_cast<unsigned>(__syncthreads_and(threadIdx.x != 40));
  o[14] = static_cast<unsigned>(__double_as_longlong(__shfl_sync(kAll, lane + 0.5, 4)) >> 32);
}

void test_collectives(const char* order) {
  std::vector<unsigned> out(64 * 16);
  launch(collectives, 1u, 64, kDevice, out.data());
  bool good = true;
  for (unsigned thread = 0; thread < 64; ++thread) {
    const unsigned lane = thread % 32, *o = &out[thread * 16];
    const unsigned down = lane % 16 + 3 < 16 ? lane + 3 : lane;
    const unsigned half = lane < 16 ? lane ^ 1u : 16u;
    good = good && o[0] == 50 && o[1] == lane / 8 * 8 + 3 && o[2] == (lane < 2 ? lane : lane - 2) &&
           o[3] == down && o[4] == (lane ^ 9u) && o[5] == 0x49249249u && o[6] == 1 && o[7] == 0 &&
           o[8] == 496 && o[9] == 31 && o[10] == half && o[11] == 32 && o[12] == 1 && o[13] == 0 &&
           o[14] == 0x40120000u;
  }
  check(good, (std::string("warp collectives and counting barriers, ") + order).c_str());
}

__global__ void poisoned(float* out, float* dynamic) {
  __shared__ float fixed[64];
  const auto* bytes = reinterpret_cast<const float*>(dynamic_shared());
  out[threadIdx.x] = fixed[threadIdx.x];
  dynamic[threadIdx.x] = bytes[threadIdx.x];
  __syncthreads();
  fixed[threadIdx.x] = 1.f;  // the next block must not see it
}

void test_poison() {
  float out[64], dynamic[64];
  bool good = true;
  for (int round = 0; round < 2; ++round) {
    launch(poisoned, LaunchShape{dim3(2), dim3(64), 256}, kDevice, static_cast<float*>(out),
           static_cast<float*>(dynamic));
    for (int i = 0; i < 64; ++i) good = good && out[i] != out[i] && dynamic[i] != dynamic[i];
  }
  check(good, "shared memory is poisoned at the start of every block");
}

__global__ void indices(unsigned* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  atomicAdd(&out[block * 24 + thread], thread + 100 * block);
}

void test_indices() {
  std::vector<unsigned> out(24 * 24);
  launch(indices, LaunchShape{dim3(4, 3, 2), dim3(2, 3, 4)}, kDevice, out.data());
  bool good = true;
  for (unsigned i = 0; i < out.size(); ++i) good = good && out[i] == i % 24 + 100 * (i / 24);
  check(good, "three dimensions of threads and blocks");
}

// ---- Tensor cores and asynchronous copies ----

// c = a b of 16 x 16 by 16 x 8. `transposed`: b lies as 8 x 16 and is read without .trans.
template <class T>
__global__ void product(const T* a, const T* b, float* c, bool transposed, bool wait, bool x2) {
  __shared__ __align__(16) T left[16][24], right[16][24];  // padded rows
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 32; i += 32) cp_async_16(&left[i / 2][i % 2 * 8], a + i * 8, true);
  cp_async_commit();
  if (lane < 16) {
    const int row = transposed ? lane / 2 : lane, column = transposed ? lane % 2 * 8 : 0;
    cp_async_16(&right[row][column], b + lane * 8, true);
  }
  cp_async_commit();
  if (wait)
    cp_async_wait<0>();
  else
    cp_async_wait<1>();  // leaves the copies of b under way
  __syncwarp();
  uint32_t x[4], y[2];
  ldmatrix_x4(x, &left[lane % 16][lane / 16 * 8]);
  if (x2 && transposed) {
    ldmatrix_x2(y, &right[lane % 8][lane / 8 % 2 * 8]);
  } else if (x2) {
    ldmatrix_x2_trans(y, &right[lane % 16][0]);
  } else {  // the same through the four-fold forms
    uint32_t four[4];
    if (transposed)
      ldmatrix_x4(four, &right[lane % 8][lane / 8 % 2 * 8]);
    else
      ldmatrix_x4_trans(four, &right[lane % 16][0]);
    y[0] = four[0], y[1] = four[1];
  }
  float d[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  mma_m16n8k16<T>(d, x, y);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <class T>
bool multiplies(bool transposed, bool wait, bool x2) {
  alignas(16) T a[256], b[128];
  float c[128];
  for (int i = 0; i < 256; ++i) a[i] = T(static_cast<float>((i * 37 + i / 16 * 5) % 23 - 11));
  for (int i = 0; i < 128; ++i) b[i] = T(static_cast<float>((i * 29 + 3) % 19 - 9) * 0.25f);
  launch(product<T>, 1u, 32, kDevice, static_cast<const T*>(a), static_cast<const T*>(b),
         static_cast<float*>(c), transposed, wait, x2);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0.5f;  // exact: small multiples of 1/4
      for (int k = 0; k < 16; ++k)
        sum += static_cast<float>(a[i * 16 + k]) *
               static_cast<float>(transposed ? b[j * 16 + k] : b[k * 8 + j]);
      if (c[i * 8 + j] != sum) return false;
    }
  return true;
}

__global__ void zero_filled(const float* in, float* out) {
  __shared__ __align__(16) float tile[8];
  if (threadIdx.x < 2)
    cp_async_16(&tile[threadIdx.x * 4], threadIdx.x ? nullptr : in, threadIdx.x == 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = tile[threadIdx.x];
}

// Another's copies are there after its wait AND a barrier.
__global__ void copied_by_another(const int* in, int* out, bool barrier) {
  __shared__ __align__(16) int tile[128];
  cp_async_16(&tile[threadIdx.x * 4], in + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (barrier) __syncthreads();
  for (unsigned i = threadIdx.x; i < 128; i += 32) out[i] = tile[127 - i];
}

bool copies(bool barrier) {
  alignas(16) int in[128], out[128];
  for (int i = 0; i < 128; ++i) in[i] = i;
  launch(copied_by_another, 1u, 32, kDevice, static_cast<const int*>(in), static_cast<int*>(out),
         barrier);
  for (int i = 0; i < 128; ++i)
    if (out[i] != 127 - i) return false;
  return true;
}

void test_tensor_cores(const char* order) {
  const auto name = [&](const char* what) { return std::string(what) + ", " + order; };
  for (const bool transposed : {false, true})
    for (const bool x2 : {false, true}) {
      check(multiplies<__nv_bfloat16>(transposed, true, x2), name("bf16 product").c_str());
      check(multiplies<__half>(transposed, true, x2), name("f16 product").c_str());
    }
  check(!multiplies<__nv_bfloat16>(true, false, true), name("a missing cp_async_wait").c_str());
  alignas(16) float in[4] = {1, 2, 3, 4};
  float out[8];
  launch(zero_filled, 1u, 32, kDevice, static_cast<const float*>(in), static_cast<float*>(out));
  const float expected[8] = {1, 2, 3, 4, 0, 0, 0, 0};
  check(std::memcmp(out, expected, sizeof out) == 0, name("a copy that is not valid").c_str());
  check(copies(true), name("copies of other threads").c_str());
  check(!copies(false), name("copies of other threads without a barrier").c_str());
}

// ---- Faults that must end the launch ----

__global__ void divergent_barrier(int kind) {
  if (kind == 0 && threadIdx.x < 16) __syncwarp(0x0001ffffu);  // lane 16 is elsewhere
  if (kind == 0 && threadIdx.x >= 16) __syncthreads();
  if (kind == 1 && threadIdx.x != 3) __syncthreads();
  if (kind == 1 && threadIdx.x == 3) __shfl_sync(0xffffffffu, 1, 0);
  if (kind == 2) {
    if (threadIdx.x % 2)
      __syncthreads();
    else
      __syncthreads();
  }
  if (kind == 3 && threadIdx.x >= 8) return;
  if (kind == 3) __shfl_xor_sync(0xffffffffu, 1, 1);
  if (kind == 4 && threadIdx.x == 9) __ballot_sync(0xffu, 1);
  if (kind == 5) {
    if (threadIdx.x < 16)
      __ballot_sync(0xffffffffu, 1);
    else
      __shfl_sync(0xffffffffu, 1, 0);
  }
  if (kind == 6 && threadIdx.x >= 8) return;
  if (kind == 6) __syncthreads();  // allowed: of the threads that are left
  if (kind == 7) __trap();
  if (kind == 8) {
    int x = 0;
    __shfl_sync(0xffffffffu, x, 0, 5);
  }
}

__global__ void bad_address(int kind) {
  __shared__ __align__(16) float tile[64];
  __align__(16) float local[8] = {};
  uint32_t r[4];
  if (kind == 0) cp_async_16(&tile[1], local, true);
  if (kind == 1) cp_async_16(local, local + 4, true);
  if (kind == 2) ldmatrix_x4(r, reinterpret_cast<const char*>(tile) + 2);
  if (kind == 3) ldmatrix_x4(r, local);
}

void test_faults(const char* order) {
  const char* parts[] = {"no thread can go on",
                         "no thread can go on",
                         "others wait in that of",
                         "has returned",
                         "its mask does not name",
                         "where other lanes wait in",
                         nullptr,
                         "__trap",
                         "a width that is no power of"};
  for (int kind = 0; kind < 9; ++kind) {
    const std::string error = error_of([&] { launch(divergent_barrier, 1u, 32, kDevice, kind); });
    const std::string name = "fault " + std::to_string(kind) + ", " + order + ": " + error;
    check(parts[kind] ? has(error, parts[kind]) && has(error, "cuda_emulation_test.cu:")
                      : error.empty(),
          name.c_str());
  }
  const char* addresses[] = {"multiple of 16", "not in shared memory", "multiple of 16",
                             "not in shared memory"};
  for (int kind = 0; kind < 4; ++kind)
    check(has(error_of([&] { launch(bad_address, 1u, 32, kDevice, kind); }), addresses[kind]),
          "an address that the hardware refuses");
  check(is_reversed(reversed(true)), "a launch after one that failed");
  check(has(error_of([&] { launch(indices, LaunchShape{dim3(1), dim3(1025)}, kDevice, nullptr); }),
            "invalid configuration"),
        "a block of more than 1024 threads");
}

// A faulty kernel must give a wrong result in one of the orders at least; most do in all.
int wrong_in(const std::function<bool()>& right) {
  int wrong = 0;
  in_every_order([&](const char*) { wrong += !right(); });
  return wrong;
}

}  // namespace

int main() {
  test_poison();
  test_indices();
  in_every_order([](const char* order) {
    const std::string in = std::string(", ") + order;
    check(is_reversed(reversed(true)), ("a barrier" + in).c_str());
    check(rotates(true), ("__syncwarp" + in).c_str());
    check(broadcasts(true), ("two barriers" + in).c_str());
    test_collectives(order);
    test_tensor_cores(order);
    test_wgmma(order);
    test_faults(order);
  });
  const int barrier = wrong_in([] { return is_reversed(reversed(false)); });
  const int warp = wrong_in([] { return rotates(false); });
  const int twice = wrong_in([] { return broadcasts(false); });
  std::printf("of 12 orders, wrong without a barrier: %d, __syncwarp: %d, the second barrier: %d\n",
              barrier, warp, twice);
  check(barrier == 12, "a missing __syncthreads shows in every order");
  check(warp == 12, "a missing __syncwarp shows in every order");
  check(twice >= 3, "a missing second barrier shows in some orders");
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
