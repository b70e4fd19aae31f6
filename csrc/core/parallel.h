#pragma once

#include <cstdint>

#include "function_ref.h"

namespace pixleap {

// The most threads that set_num_threads and the environment can ask for.
inline constexpr int kMaxThreads = 1024;

// Threads that parallel_for may use, the calling one included. The first use reads
// PIXLEAP_NUM_THREADS, else OMP_NUM_THREADS (the first entry of a list), else takes the number of
// CPUs in the affinity mask. Values that are not positive integers are passed over.
int num_threads();

// Clamps to [1, kMaxThreads]. May be called at any time from any thread; calls of parallel_for
// that are already running keep the threads they started with.
void set_num_threads(int n);

// Runs body(begin, end) over [0, n) in chunks of `grain`, the last one shorter. The chunk
// boundaries depend on n and grain only, so a body whose result depends only on its chunk gives
// the same bits for any number of threads. Workers take on the caller's floating-point control
// word (rounding, flush-to-zero) for the same reason. A grain below 1 counts as 1.
//
// Runs in the calling thread, in order, when there is one chunk, when num_threads() is 1, when
// called from inside a body, and when another thread is using the pool (waiting for it could take
// longer than doing the work, and could deadlock callers that hold locks).
//
// If a body throws, chunks not yet started are dropped and the first exception is rethrown here
// after the running ones have ended.
//
// After fork() the child builds a pool of its own on first use. A child that is forked inside a
// body should exit or exec there: if it returns from the body, chunks that other threads held are
// lost, and parallel_for throws std::runtime_error.
void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t)> body);

}  // namespace pixleap
