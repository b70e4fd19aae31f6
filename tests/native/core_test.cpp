// Tests of csrc/core: thread pool, CPU detection, Philox. Run without arguments; `--bench` prints
// latencies of the pool instead.

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../../csrc/core/cpu_features.h"
#include "../../csrc/core/function_ref.h"
#include "../../csrc/core/parallel.h"
#include "../../csrc/core/philox.h"

// ThreadSanitizer refuses threads in a child of a threaded process unless told otherwise.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }

namespace {

// GCC 12's AddressSanitizer takes a lock of its own when a thread starts or ends. A child that is
// forked while another thread holds it can start no thread, whatever the pool does.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kForkWhileThreadsStart = false;
#else
constexpr bool kForkWhileThreadsStart = true;
#endif

using pixleap::FunctionRef;
using pixleap::Isa;
using pixleap::num_threads;
using pixleap::parallel_for;
using pixleap::set_num_threads;

std::atomic<int> g_passed{0};
std::atomic<int> g_failed{0};

void check(bool ok, const char* text, int line, const std::string& detail = "") {
  (ok ? g_passed : g_failed).fetch_add(1);
  if (!ok) {
    std::fprintf(stderr, "core_test.cpp:%d: %s %s\n", line, text, detail.c_str());
  }
}
#define CHECK(condition) check((condition), #condition, __LINE__)
#define CHECK_FOR(condition, detail) check((condition), #condition, __LINE__, detail)

template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// Runs f in a forked child and gives its exit status; -1 for death by signal (a hang included).
template <typename F>
int in_child(F&& f) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(30);
    _exit(f());
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return -2;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Starts this program again with one environment variable changed and gives its output.
std::string probe(const std::string& assignments, const char* mode) {
  std::array<char, 4096> path{};
  if (readlink("/proc/self/exe", path.data(), path.size() - 1) < 0) return "no /proc";
  const std::string command = "env -u PIXLEAP_ISA -u PIXLEAP_NUM_THREADS -u OMP_NUM_THREADS " +
                              assignments + " '" + path.data() + "' " + mode;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "no popen";
  std::string output;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
  const int status = pclose(pipe);
  return status == 0 ? output : output + " (failed)";
}

// True when two threads are inside bodies of one parallel_for at the same moment.
bool two_threads_meet() {
  std::atomic<int> inside{0};
  std::atomic<bool> met{true};
  parallel_for(2, 1, [&](int64_t, int64_t) {
    inside.fetch_add(1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (inside.load() < 2) {
      if (std::chrono::steady_clock::now() > deadline) {
        met = false;
        return;
      }
      std::this_thread::yield();
    }
  });
  return met.load();
}

// Every index once, and boundaries at multiples of the grain.
bool covers(int64_t n, int64_t grain) {
  std::vector<int> hits(static_cast<size_t>(n), 0);  // each written by one chunk only
  std::atomic<bool> good{true};
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    if (begin % grain != 0 || end != std::min(begin + grain, n) || begin >= end) good = false;
    for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
  });
  for (const int h : hits) good = good.load() && h == 1;
  return good.load();
}

int sum_two(int a, int b) { return a + b; }

void test_function_ref() {
  int calls = 0;
  auto counter = [&calls](int by) { return calls += by; };
  const FunctionRef<int(int)> reference = counter;
  const FunctionRef<int(int)> copy = reference;
  CHECK(reference(2) == 2 && copy(3) == 5);
  const FunctionRef<int(int, int)> function = sum_two;
  CHECK(function(2, 3) == 5);
  const auto constant = [](int) { return 7; };
  CHECK((FunctionRef<int(int)>(constant)(0) == 7));
}

void test_coverage() {
  for (const int threads : {1, 2, 3, 4, 7, 16}) {
    set_num_threads(threads);
    CHECK(num_threads() == threads);
    for (const int64_t n : {0, 1, 2, 3, 7, 64, 1000, 4097}) {
      for (const int64_t grain : {1, 2, 3, 64, 999, 1000, 5000}) {
        CHECK_FOR(covers(n, grain), "threads " + std::to_string(threads) + " n " +
                                        std::to_string(n) + " grain " + std::to_string(grain));
      }
    }
  }
  set_num_threads(2);
  int calls = 0;
  parallel_for(-5, 1, [&](int64_t, int64_t) { ++calls; });
  CHECK(calls == 0);
  std::atomic<int64_t> total{0};
  parallel_for(10, 0, [&](int64_t begin, int64_t end) { total += end - begin; });
  parallel_for(10, -3, [&](int64_t begin, int64_t end) { total += end - begin; });
  CHECK(total == 20);
  // Nothing may overflow at the end of the range, whether parallel or serial.
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const int threads : {1, 2}) {
    set_num_threads(threads);
    total = 0;
    parallel_for(kMax, kMax / 3 * 2, [&](int64_t begin, int64_t end) { total += end - begin; });
    CHECK(total == kMax);
    total = 0;
    parallel_for(kMax, kMax, [&](int64_t begin, int64_t end) { total += end - begin; });
    CHECK(total == kMax);
  }
  set_num_threads(0);
  CHECK(num_threads() == 1);
  set_num_threads(-4);
  CHECK(num_threads() == 1);
  set_num_threads(1 << 30);
  CHECK(num_threads() == pixleap::kMaxThreads);
  set_num_threads(2);
  CHECK(two_threads_meet());
  // From sleep as well.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(two_threads_meet());
}

void test_same_bits() {
  std::vector<float> data(100'003);
  for (size_t i = 0; i < data.size(); ++i) {
    data[i] = pixleap::philox_normal(1, 0, i);
  }
  const auto sum = [&data] {
    std::vector<float> parts(data.size() / 1000 + 1);
    parallel_for(static_cast<int64_t>(data.size()), 1000, [&](int64_t begin, int64_t end) {
      float part = 0;
      for (int64_t i = begin; i < end; ++i) part += data[static_cast<size_t>(i)];
      parts[static_cast<size_t>(begin / 1000)] = part;
    });
    float total = 0;
    for (const float part : parts) total += part;
    return total;
  };
  set_num_threads(1);
  const float expected = sum();
  for (const int threads : {2, 3, 5}) {
    set_num_threads(threads);
    for (int i = 0; i < 20; ++i) CHECK(sum() == expected);
  }
#if defined(__x86_64__)
  set_num_threads(2);
  parallel_for(64, 1, [](int64_t, int64_t) {});  // workers exist before the mode changes
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {before | 0x8000u, before}) {  // flush-to-zero on, then off
    _mm_setcsr(mode);
    std::atomic<int> inside{0};
    std::atomic<int> different{0};
    parallel_for(2, 1, [&](int64_t, int64_t) {
      inside.fetch_add(1);
      for (int i = 0; i < 100'000'000 && inside.load() < 2; ++i) _mm_pause();
      if ((_mm_getcsr() & 0x8000u) != (mode & 0x8000u)) different.fetch_add(1);
    });
    CHECK(inside.load() == 2 && different.load() == 0);
  }
  _mm_setcsr(before);
#endif
}

void test_exceptions() {
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    for (int round = 0; round < 50; ++round) {
      std::atomic<int> ran{0};
      const std::string error = error_of([&] {
        parallel_for(1000, 1, [&](int64_t begin, int64_t) {
          ran.fetch_add(1);
          if (begin == round) throw std::runtime_error("chunk " + std::to_string(begin));
        });
      });
      CHECK(error == "chunk " + std::to_string(round));
      CHECK(ran.load() > 0 && ran.load() <= 1000);
      CHECK(covers(100, 3));  // the pool works on
    }
    // All chunks throw: one error comes out, and no later than the running ones have ended.
    std::atomic<int> inside{0};
    const std::string error = error_of([&] {
      parallel_for(64, 1, [&](int64_t, int64_t) {
        inside.fetch_add(1);
        std::this_thread::yield();
        inside.fetch_sub(1);
        throw std::runtime_error("every");
      });
    });
    CHECK(error == "every" && inside.load() == 0);
    // After an error in the first chunk, few of the 10^12 others can have started.
    CHECK(error_of([] {
            parallel_for(1'000'000'000'000, 1,
                         [](int64_t, int64_t) { throw std::runtime_error("early"); });
          }) == "early");
  }
  set_num_threads(2);
  CHECK(error_of([] {
          parallel_for(1, 1, [](int64_t, int64_t) { throw std::runtime_error("single"); });
        }) == "single");
}

void test_nesting() {
  for (const int threads : {2, 4}) {
    set_num_threads(threads);
    std::atomic<int64_t> total{0};
    std::atomic<bool> same_thread{true};
    parallel_for(20, 1, [&](int64_t, int64_t) {
      const auto outer = std::this_thread::get_id();
      int64_t next = 0;
      parallel_for(100, 7, [&](int64_t begin, int64_t end) {
        if (std::this_thread::get_id() != outer || begin != next) same_thread = false;
        next = end;
        total += end - begin;
      });
    });
    CHECK(total == 2000 && same_thread.load());
    const std::string error = error_of([] {
      parallel_for(8, 1, [](int64_t, int64_t) {
        parallel_for(8, 1, [](int64_t, int64_t) { throw std::runtime_error("inner"); });
      });
    });
    CHECK(error == "inner");
    CHECK(two_threads_meet());
  }
}

void test_concurrent_callers() {
  for (const int threads : {2, 4}) {
    set_num_threads(threads);
    std::vector<std::thread> callers;
    for (int t = 0; t < 8; ++t) {
      callers.emplace_back([t] {
        int good = 0;
        for (int i = 0; i < 200; ++i) {
          if (i % 10 == 9) {
            good += error_of([] {
                      parallel_for(50, 1, [](int64_t b, int64_t) {
                        if (b == 17) throw std::runtime_error("x");
                      });
                    }) == "x";
          } else {
            good += covers(100 + t * 10 + i % 7, 1 + i % 13);
          }
        }
        CHECK(good == 200);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

void test_churn() {
  std::atomic<bool> stop{false};
  std::thread churn([&stop] {
    for (int i = 0; !stop.load(); ++i) {
      set_num_threads(1 + i % 5);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([] {
      int good = 0;
      for (int i = 0; i < 300; ++i) good += covers(500, 11);
      CHECK(good == 300);
    });
  }
  for (std::thread& caller : callers) caller.join();
  stop = true;
  churn.join();
  set_num_threads(2);
  CHECK(two_threads_meet());
}

void test_fork() {
  set_num_threads(2);
  CHECK(covers(100, 1));
  CHECK(in_child([] { return two_threads_meet() && covers(1000, 7) ? 0 : 1; }) == 0);
  // While another thread is inside parallel_for, with workers in the middle of bodies, at many
  // different moments; every other time the size of the pool changes as well.
  std::atomic<bool> stop{false};
  std::thread busy([&stop] {
    while (!stop.load()) covers(2000, 5);
  });
  for (int i = 0; i < 30; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(137 * i));
    if (kForkWhileThreadsStart && i % 2 == 1) set_num_threads(2 + i % 3);
    const int status = in_child([] {
      // A grandchild, as with a server that forks workers that fork loaders.
      const auto works = [] { return two_threads_meet() && covers(1000, 7) ? 0 : 1; };
      return works() != 0 ? 1 : in_child(works);
    });
    CHECK_FOR(status == 0, "status " + std::to_string(status));
  }
  stop = true;
  busy.join();
  set_num_threads(2);
  CHECK(two_threads_meet());

  // A body that forks and whose child returns from it gets an error rather than a hang.
  const auto caller = std::this_thread::get_id();
  std::atomic<int> inside{0};
  std::atomic<bool> forked{false};
  const pid_t parent = getpid();
  pid_t child = -1;
  const std::string error = error_of([&] {
    parallel_for(2, 1, [&](int64_t, int64_t) {
      inside.fetch_add(1);
      while (inside.load() < 2) std::this_thread::yield();
      if (std::this_thread::get_id() == caller) {
        std::fflush(nullptr);
        child = fork();
        if (child == 0) alarm(30);
        forked = true;
      } else {
        while (!forked.load()) std::this_thread::yield();
      }
    });
  });
  if (getpid() != parent) {
    _exit(contains(error, "forked inside a body") && two_threads_meet() ? 0 : 1);
  }
  int status = 0;
  CHECK(error.empty() && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_environment() {
  CHECK(probe("PIXLEAP_NUM_THREADS=3 OMP_NUM_THREADS=5", "--threads") == "3");
  CHECK(probe("OMP_NUM_THREADS=5", "--threads") == "5");
  CHECK(probe("OMP_NUM_THREADS=6,2", "--threads") == "6");
  CHECK(probe("PIXLEAP_NUM_THREADS= OMP_NUM_THREADS=5", "--threads") == "5");
  CHECK(probe("PIXLEAP_NUM_THREADS=999999999999999999999", "--threads") == "1024");
  const std::string automatic = probe("", "--threads");
  CHECK(std::atoi(automatic.c_str()) >= 1);
  for (const char* bad : {"0", "-2", "many", "3x"}) {
    CHECK(probe(std::string("PIXLEAP_NUM_THREADS=") + bad, "--threads") == automatic);
  }
  // Process exit: with idle and spinning workers, and with a thread still inside parallel_for.
  CHECK(probe("PIXLEAP_NUM_THREADS=4", "--exit-idle") == "bye");
  CHECK(probe("PIXLEAP_NUM_THREADS=2", "--exit-busy") == "bye");
}

void test_isa() {
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx}) {
    const auto parsed = pixleap::parse_isa(pixleap::isa_name(isa));
    CHECK(parsed.has_value() && *parsed == isa);
  }
  for (const char* bad : {"", "AVX2", "avx", "avx5122", " amx", "sse"}) {
    CHECK(!pixleap::parse_isa(bad).has_value());
  }
  CHECK(std::strcmp(pixleap::isa_name(static_cast<Isa>(9)), "unknown") == 0);
  CHECK(!pixleap::isa_available(static_cast<Isa>(9)));

  const pixleap::CpuFeatures& cpu = pixleap::cpu_features();
  CHECK(&cpu == &pixleap::cpu_features());
  CHECK(!cpu.avx512 || cpu.avx2);
  CHECK(!cpu.avx512_bf16 || cpu.avx512);
#if defined(__x86_64__)
  CHECK(cpu.avx2 == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK(cpu.avx512 == (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")));
#endif
  CHECK(pixleap::isa_available(Isa::scalar));
  CHECK(pixleap::isa_available(pixleap::best_isa()));
  // Availability is a prefix of the order, so "the highest" says all.
  for (int i = 0; i < pixleap::kIsaCount; ++i) {
    CHECK(pixleap::isa_available(static_cast<Isa>(i)) ==
          (i <= static_cast<int>(pixleap::best_isa())));
  }

  const std::string best = pixleap::isa_name(pixleap::best_isa());
  CHECK(probe("", "--isa") == best);
  CHECK(probe("PIXLEAP_ISA=", "--isa") == best);
  CHECK(probe("PIXLEAP_ISA=scalar", "--isa") == "scalar");
  const std::string unknown = probe("PIXLEAP_ISA=sse9", "--isa");
  // Twice: a bad value must not be forgotten after its first report.
  CHECK(unknown.find("sse9") != unknown.rfind("sse9"));
  CHECK(contains(unknown, "available: scalar") && contains(unknown, best.c_str()));
  if (!pixleap::isa_available(Isa::amx)) {
    CHECK(contains(probe("PIXLEAP_ISA=amx", "--isa"), "cannot run on this machine"));
    CHECK(contains(error_of([] { pixleap::set_active_isa(Isa::amx); }), "available: scalar"));
  }
  CHECK(!error_of([] { pixleap::set_active_isa(static_cast<Isa>(-1)); }).empty());
  pixleap::set_active_isa(Isa::scalar);
  CHECK(pixleap::active_isa() == Isa::scalar);
  pixleap::set_active_isa(pixleap::best_isa());
  CHECK(pixleap::active_isa() == pixleap::best_isa());
}

constexpr bool equal(const pixleap::Philox4& a, const pixleap::Philox4& b) {
  return a.v[0] == b.v[0] && a.v[1] == b.v[1] && a.v[2] == b.v[2] && a.v[3] == b.v[3];
}

void test_philox() {
  using pixleap::philox4x32_10;
  // Random123's known answers, also at compile time.
  constexpr bool kZeros =
      equal(philox4x32_10(0, 0, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  constexpr bool kOnes =
      equal(philox4x32_10(~0ull, ~0ull, ~0ull), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  constexpr bool kPi =
      equal(philox4x32_10(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e),
            {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
  static_assert(kZeros && kOnes && kPi);
  volatile uint64_t zero = 0;
  CHECK(equal(philox4x32_10(zero, zero, zero), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  CHECK(equal(philox4x32_10(~zero, ~zero, ~zero),
              {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  CHECK(equal(philox4x32_10(zero + 0x299f31d0a4093822, zero + 0x85a308d3243f6a88,
                            zero + 0x0370734413198a2e),
              {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
  for (const uint64_t element : {0ull, 1ull, 6ull, 1'000'003ull, ~0ull}) {
    CHECK(pixleap::philox_element(5, 9, element) ==
          philox4x32_10(5, element / 4, 9).v[element % 4]);
  }

  constexpr uint32_t kAll = 0xffffffffu;
  CHECK(pixleap::uniform_open(0) == 0x1p-24f);
  CHECK(pixleap::uniform_open(kAll) == 1.0f - 0x1p-24f);
  CHECK(pixleap::uniform_open(0x80000000u) == 0.5f + 0x1p-24f);
  CHECK(pixleap::uniform_open_double(0, 0) == 0x1p-53);
  CHECK(pixleap::uniform_open_double(kAll, kAll) == 1.0 - 0x1p-53);
  CHECK(pixleap::uniform_open_double(0x80000000u, 0) == 0.5 + 0x1p-53);
  CHECK(pixleap::uniform_open_double(0, 0xfff) == 0x1p-53);

  // Against double arithmetic, over random words and the ends and quadrant borders.
  std::vector<uint32_t> words = {0,          kAll,       511,        512,
                                 kAll - 512, 0x20000000, 0x1fffffff, 0x60000000,
                                 0x5fffffff, 0x80000000, 0x7fffffff, 0xa0000000,
                                 0xdfffffff, 0xe0000000, 0xb504f333, 0xb504f400};
  for (uint64_t i = 0; i < 500; ++i) words.push_back(pixleap::philox_element(3, 1, i));
  double worst = 0;
  constexpr double kTwoPi = 6.283185307179586476925;
  for (const uint32_t a : words) {
    for (const uint32_t b : words) {
      const pixleap::NormalPair z = pixleap::box_muller(a, b);
      const double radius = std::sqrt(-2 * std::log(static_cast<double>(pixleap::uniform_open(a))));
      const double angle = kTwoPi * static_cast<double>(pixleap::uniform_open(b));
      const double scale = std::max(radius, 1e-300);
      worst = std::max(worst,
                       std::abs(static_cast<double>(z.first) - radius * std::cos(angle)) / scale);
      worst = std::max(worst,
                       std::abs(static_cast<double>(z.second) - radius * std::sin(angle)) / scale);
    }
  }
  CHECK_FOR(worst < 3e-7, std::to_string(worst * 1e7) + "e-7");

  constexpr int kCount = 400'000;
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, pair = 0, uniform = 0, previous = 0;
  for (int i = 0; i < kCount; ++i) {
    const auto e = static_cast<uint64_t>(i);
    const double z = static_cast<double>(pixleap::philox_normal(42, 7, e));
    m1 += z;
    m2 += z * z;
    m3 += z * z * z;
    m4 += z * z * z * z;
    if (i % 2 == 1) pair += z * previous;
    previous = z;
    uniform += static_cast<double>(pixleap::uniform_open(pixleap::philox_element(42, 7, e)));
  }
  // Five standard errors each.
  const double root = std::sqrt(static_cast<double>(kCount));
  CHECK(std::abs(m1 / kCount) < 5 / root);
  CHECK(std::abs(m2 / kCount - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(m3 / kCount) < 5 * std::sqrt(15.0) / root);
  CHECK(std::abs(m4 / kCount - 3) < 5 * std::sqrt(96.0) / root);
  CHECK(std::abs(pair / (kCount / 2)) < 5 * std::sqrt(2.0) / root);
  CHECK(std::abs(uniform / kCount - 0.5) < 5 * 0.2887 / root);

  // The bits are part of the contract: any compiler, flag and ISA must reproduce this digest (FNV).
  uint64_t digest = 1469598103934665603ull;
  for (uint64_t e = 0; e < 100'000; ++e) {
    const float z = pixleap::philox_normal(2024, 11, e);
    uint32_t bits;
    std::memcpy(&bits, &z, sizeof bits);
    digest = (digest ^ bits) * 1099511628211ull;
  }
  CHECK_FOR(digest == 18071440885366022872ull, std::to_string(digest));
}

void bench() {
  using Clock = std::chrono::steady_clock;
  const auto best_of = [](int batches, int calls, auto&& f) {
    double best = 1e30, sum = 0;
    for (int b = 0; b < batches; ++b) {
      const auto start = Clock::now();
      for (int i = 0; i < calls; ++i) f();
      const double us =
          std::chrono::duration<double, std::micro>(Clock::now() - start).count() / calls;
      best = std::min(best, us);
      sum += us;
    }
    std::printf("best %.3f us, mean %.3f us\n", best, sum / batches);
  };
  const auto empty = [](int64_t, int64_t) {};
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    std::printf("%d threads, empty, 2 chunks, hot:   ", threads);
    best_of(50, 2000, [&] { parallel_for(2, 1, empty); });
  }
  set_num_threads(2);
  // Both threads must take part, so this includes one hand-over each way.
  std::printf("2 threads, rendezvous of 2, hot:    ");
  best_of(50, 2000, [] {
    std::atomic<int> inside{0};
    parallel_for(2, 1, [&inside](int64_t, int64_t) {
      inside.fetch_add(1);
      while (inside.load(std::memory_order_relaxed) < 2) {
      }
    });
  });
  std::printf("2 threads, empty, after 1 ms sleep (sleep taken off): ");
  double total = 0;
  for (int i = 0; i < 200; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto start = Clock::now();
    parallel_for(2, 1, empty);
    total += std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }
  std::printf("mean %.3f us\n", total / 200);
}

int run_mode(const std::string& mode) {
  if (mode == "--bench") {
    bench();
  } else if (mode == "--threads") {
    std::printf("%d", num_threads());
  } else if (mode == "--isa") {
    for (int i = 0; i < 2; ++i) {
      const std::string error = error_of([&] {
        const char* name = pixleap::isa_name(pixleap::active_isa());
        if (i == 0) std::printf("%s", name);
      });
      std::printf("%s", error.c_str());
    }
  } else if (mode == "--exit-idle" || mode == "--exit-busy") {
    if (!covers(1000, 3)) return 1;
    if (mode == "--exit-busy") {
      std::thread([] {
        for (;;) parallel_for(1000, 1, [](int64_t, int64_t) {});
      }).detach();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    std::printf("bye");
  } else {
    std::fprintf(stderr, "unknown mode %s\n", mode.c_str());
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_mode(argv[1]);
  test_function_ref();
  test_coverage();
  test_same_bits();
  test_exceptions();
  test_nesting();
  test_concurrent_callers();
  test_churn();
  test_fork();
  test_environment();
  test_isa();
  test_philox();
  std::printf("%d passed, %d failed\n", g_passed.load(), g_failed.load());
  return g_failed.load() == 0 ? 0 : 1;
}
