#include "cuda/emulate/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "PIXLEAP_CUDA_EMULATE has a stack switch for x86-64 only"
#endif

// Saves what a call must preserve on the old stack, and goes on with the new one.
extern "C" void pixleap_switch_stack(void** from, void* to);
asm(R"(
.text
.type pixleap_switch_stack, @function
.hidden pixleap_switch_stack
pixleap_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pixleap_switch_stack, .-pixleap_switch_stack
)");

namespace pixleap::emulate {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif

Fiber* came_from = nullptr;
void (*entry_of_fibers)() = nullptr;

void arrived(Fiber& here) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.sanitizer, &bottom, &size);
  came_from->bottom = const_cast<void*>(bottom);
  came_from->size = size;
#else
  static_cast<void>(here);
#endif
}

void begin() {
  Fiber none;
  arrived(none);
  entry_of_fibers();
}

}  // namespace

void start_fiber(Fiber& fiber, void (*entry)(), bool abandoned) {
  entry_of_fibers = entry;
  if (!fiber.bottom) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* all = mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    mprotect(all, page, PROT_NONE);
    fiber.bottom = static_cast<char*>(all) + page;
    fiber.size = kStack;
  }
#if defined(__SANITIZE_ADDRESS__)
  // No use of a fiber ends by returning: its outermost frames stay marked, abandoned it is all.
  const size_t marked = abandoned ? fiber.size : 16 * 1024;
  __asan_unpoison_memory_region(static_cast<char*>(fiber.bottom) + fiber.size - marked, marked);
  fiber.sanitizer = nullptr;
#else
  static_cast<void>(abandoned);
#endif
  auto* top = reinterpret_cast<void**>(static_cast<char*>(fiber.bottom) + fiber.size);
  *--top = nullptr;  // where `begin` would return to; keeps its stack aligned
  *--top = reinterpret_cast<void*>(&begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to, bool finished) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(finished ? nullptr : &from.sanitizer, to.bottom, to.size);
#else
  static_cast<void>(finished);
#endif
  came_from = &from;
  pixleap_switch_stack(&from.stack_pointer, to.stack_pointer);
  arrived(from);
}

}  // namespace pixleap::emulate
