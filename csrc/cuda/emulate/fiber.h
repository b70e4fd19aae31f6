// A stack and what is needed to go on with it: the caller's own, or one with a guard page below.
#pragma once

#include <cstddef>

namespace pixleap::emulate {

struct Fiber {
  void* stack_pointer = nullptr;
  void* bottom = nullptr;
  size_t size = 0;
  void* sanitizer = nullptr;
};

// Makes the fiber begin with `entry`, which must not return. Its stack is made on first use and
// kept. abandoned: the last use was left in the middle.
void start_fiber(Fiber& fiber, void (*entry)(), bool abandoned);

// finished: `from` will not be gone on with.
void switch_fiber(Fiber& from, Fiber& to, bool finished);

}  // namespace pixleap::emulate
