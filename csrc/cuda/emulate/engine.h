// Runs CUDA kernels on the CPU, to prove them without a GPU: one fiber per CUDA thread, one block
// after another, all on the calling thread. A fiber runs alone until it waits, at a barrier or at a
// warp collective, so nothing that the CUDA model leaves open is hidden by chance: shared memory is
// poisoned at the start of a block, and who runs next is a setting. A barrier or a collective that
// threads never reach is an error with its source line. docs/cuda.md says what is not modelled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

#include "core/function_ref.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace pixleap::emulate {

using Where = std::source_location;

struct EmulationError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which of the threads that can run does, whenever one has to wait: the lowest, the highest, any.
enum class Order { off, forward, reverse, shuffle };

void set_order(Order order, uint64_t seed = 0);  // off: CPU arrays go to CPU kernels
bool enabled();

// Compute capability, major, of the device that is emulated: kernels are chosen by it.
void set_capability(int major);
int capability();

struct Thread {
  uint3 index;
  unsigned lane, warp;
};
// Of the fiber that runs.
extern Thread* current;
extern uint3 block_index, block_size, grid_size;

int64_t launches();  // so far

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, FunctionRef<void()> body);
unsigned char* dynamic_shared();

// Ends the launch with an error; called by device code.
[[noreturn]] void fail(const std::string& what, Where where);

struct Votes {
  int count, any, all;  // of the threads whose predicate is not 0
};
Votes block_barrier(int predicate, Where where);

// A warp collective. Each lane of `mask` gives `size` bytes and waits until all have; `use` then
// sees what they gave, by lane. Those that are `aligned` must be one and the same instruction.
constexpr size_t kLaneBytes = 32;
struct Lanes {
  alignas(16) unsigned char data[32][kLaneBytes];
  uint32_t given;
};
struct Collective {
  const char* name;
  bool aligned = false;
  bool without_exited = false;  // lanes that have returned need not come
};
void gather(const Collective& what, uint32_t mask, const void* mine, size_t size,
            FunctionRef<void(const Lanes&)> use, Where where);

void copy_async(void* shared, const void* global, bool valid, Where where);
void commit_copies();
void wait_copies(int newest);

bool is_shared(const void* p, size_t size);

// ---- What asynchronous products need: see emulate/wgmma.h ----

// Waits until all 128 threads of the warpgroup have come, to the same place.
void meet_warpgroup(const char* name, Where where);

// Dynamic shared memory by its address in the block's window, which is a multiple of 16 only. What
// products see of it are the writes whose threads all called fence_async before a barrier; the rest
// is poison. Null where it ends.
uint32_t shared_address(const void* p, Where where);
const unsigned char* async_view(uint32_t address, size_t size);
void fence_async();

void reset_products(unsigned threads);  // at the start of a block

}  // namespace pixleap::emulate
