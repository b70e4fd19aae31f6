// Cost of the thread pool: an empty parallel loop of two chunks, hot.
#include "core/parallel.h"

#include "micro.h"

int main() {
  using namespace pixleap;
  micro::header();
  const auto call = [] { parallel_for(2, 1, [](int64_t, int64_t) {}); };
  micro::report("parallel_for, 2 empty chunks", micro::measure(call), 0, 0);
}
