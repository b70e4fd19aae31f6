// A microbenchmark in a few lines: repeats a call until a stretch is long enough to time, takes
// many stretches, and prints the median with its spread, so that a noisy machine shows as one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "core/cpu_features.h"
#include "core/parallel.h"

namespace pixleap::micro {

struct Statistics {
  double median, low, high;  // seconds per call; low and high are the quartiles
};

// Keeps the compiler from dropping work whose result nobody reads.
inline void keep(const void* p) { asm volatile("" : : "g"(p) : "memory"); }

template <class F>
Statistics measure(F&& call, int stretches = 31, double stretch_seconds = 2e-3) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [&](int64_t n) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < n; ++i) call();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  call();
  int64_t repeats = 1;
  while (seconds(repeats) < stretch_seconds) repeats *= 2;
  std::vector<double> times;
  for (int i = 0; i < stretches; ++i) times.push_back(seconds(repeats) / double(repeats));
  std::sort(times.begin(), times.end());
  const auto at = [&](double q) { return times[size_t(q * double(times.size() - 1))]; };
  return {at(0.5), at(0.25), at(0.75)};
}

// bytes: least traffic of one call; flops: least work. Zero prints nothing.
inline void report(const char* name, Statistics s, double bytes, double flops) {
  std::printf("%-40s %10.2f us  [%.2f, %.2f]", name, 1e6 * s.median, 1e6 * s.low, 1e6 * s.high);
  if (bytes > 0) std::printf("  %7.1f GB/s", bytes / s.median / 1e9);
  if (flops > 0) std::printf("  %7.1f GFLOP/s", flops / s.median / 1e9);
  std::printf("\n");
}

inline void header() {
  std::printf("ISA %s, %d threads; median [quartiles]\n", isa_name(active_isa()), num_threads());
}

}  // namespace pixleap::micro
