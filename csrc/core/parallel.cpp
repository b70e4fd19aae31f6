#include "parallel.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <exception>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// How it works. One job at a time: whoever wins `g_busy` owns the pool. The owner writes the job's
// fields and then stores the number of chunks in `unclaimed`. Threads claim chunks by decrementing
// it. A claim proves that the job is alive, because the owner returns only when every claimed
// chunk has been counted in `done`. So the job's fields are read only after a claim, and a worker
// that wakes late finds 0 and touches nothing: the owner never waits for threads that did no work.
//
// There are no mutexes and no objects with destructors at namespace scope. fork() can therefore
// happen at any instruction of another thread, and workers may sleep on while the process exits.

namespace pixleap {
namespace {

constexpr size_t kCacheLine = 64;
// Long enough to bridge the gap between two ops called from Python, short enough not to disturb.
constexpr std::chrono::nanoseconds kSpin{40'000};

using Body = FunctionRef<void(int64_t, int64_t)>;
using Clock = std::chrono::steady_clock;

#if defined(__linux__)
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}
#else
void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) { word.wait(expected); }
void futex_wake(std::atomic<uint32_t>& word, int) { word.notify_all(); }
#endif

inline void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Rounding mode and flush-to-zero, without the sticky exception flags. Frameworks change these for
// the calling thread (torch.set_flush_denormal); workers must compute as the caller would.
#if defined(__x86_64__)
constexpr uint32_t kMxcsrFlags = 0x3f;
uint64_t fp_control() { return _mm_getcsr() & ~kMxcsrFlags; }
void set_fp_control(uint64_t value) { _mm_setcsr(static_cast<uint32_t>(value)); }
#elif defined(__aarch64__)
uint64_t fp_control() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void set_fp_control(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
uint64_t fp_control() { return 0; }
void set_fp_control(uint64_t) {}
#endif

int affinity_cpus() {
#if defined(__linux__)
  // The call fails with EINVAL while the set is smaller than the kernel's mask.
  for (size_t cpus = CPU_SETSIZE; cpus <= (size_t{1} << 20); cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(cpus);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    const int error = errno;
    const int count = ok ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (ok) return std::max(count, 1);
    if (error != EINVAL) break;
  }
#endif
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

// 0 when the variable is absent or not a positive integer. "8,4" (OpenMP's nested form) gives 8.
int threads_from_env(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  while (*end == ' ') ++end;
  if (end == text || (*end != '\0' && *end != ',') || value < 1) return 0;
  return static_cast<int>(std::min<long>(value, kMaxThreads));
}

struct Pool {
  // Job, written by the owner of g_busy while no chunk is claimable.
  const Body* body = nullptr;
  int64_t n = 0;
  int64_t grain = 1;
  int64_t chunks = 0;
  uint64_t control = 0;
  std::exception_ptr error;  // written by the thread that set `failed`

  // Constant after start(), before any job is published.
  int requested = 0;
  int workers = 0;
  uint32_t generation = 0;
  std::chrono::nanoseconds spin{0};

  // What workers poll.
  alignas(kCacheLine) std::atomic<int64_t> unclaimed{0};
  std::atomic<uint32_t> epoch{0};  // one up per job; the futex word workers sleep on
  std::atomic<bool> stop{false};

  alignas(kCacheLine) std::atomic<int64_t> done{0};
  std::atomic<bool> failed{false};

  alignas(kCacheLine) std::atomic<int> sleepers{0};
  std::atomic<bool> owner_sleeps{false};
  std::atomic<uint32_t> finished{0};  // the futex word the owner sleeps on
  std::atomic<int> references{1};

  Pool* next_abandoned = nullptr;
};

constinit std::atomic<int> g_setting{0};  // 0: not read yet
constinit std::atomic<bool> g_busy{false};
constinit std::atomic<uint32_t> g_generation{0};  // how many forks away from the first process
constinit Pool* g_pool = nullptr;                 // guarded by g_busy
constinit Pool* g_abandoned = nullptr;            // keeps the leak visible to leak checkers
constinit thread_local bool t_in_task = false;

// In the child only the forking thread exists. The parent's pool cannot be freed, as its state is
// whatever it was at that instant, so it is dropped on purpose.
void after_fork_in_child() {
  if (g_pool != nullptr) {
    g_pool->next_abandoned = g_abandoned;
    g_abandoned = g_pool;
    g_pool = nullptr;
  }
  g_generation.fetch_add(1, std::memory_order_relaxed);
  g_busy.store(false, std::memory_order_relaxed);
}

// At load time rather than on first use: a once-flag could itself be held across a fork.
[[maybe_unused]] const int g_atfork = pthread_atfork(nullptr, nullptr, after_fork_in_child);

void drop_reference(Pool* pool) {
  if (pool->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete pool;
}

// Claims and runs chunks until none is left.
void run_chunks(Pool& pool) {
  int64_t finished = 0;
  int64_t left = pool.unclaimed.load(std::memory_order_relaxed);
  while (left > 0) {
    if (!pool.unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acquire,
                                              std::memory_order_relaxed)) {
      continue;
    }
    // From here to the addition to `done` the job cannot end, so all claims belong to it.
    if (finished == 0 && fp_control() != pool.control) set_fp_control(pool.control);
    const int64_t begin = (pool.chunks - left) * pool.grain;
    const int64_t end = begin + std::min(pool.grain, pool.n - begin);
    ++finished;
    try {
      (*pool.body)(begin, end);
    } catch (...) {
      if (!pool.failed.exchange(true, std::memory_order_relaxed)) {
        pool.error = std::current_exception();
      }
      finished += pool.unclaimed.exchange(0, std::memory_order_relaxed);
    }
    left = pool.unclaimed.load(std::memory_order_relaxed);
  }
  if (finished == 0) return;
  const int64_t chunks = pool.chunks;
  // seq_cst here and on owner_sleeps: either we see that the owner sleeps or it sees our count.
  if (pool.done.fetch_add(finished, std::memory_order_seq_cst) + finished != chunks) return;
  if (pool.owner_sleeps.load(std::memory_order_seq_cst)) {
    pool.finished.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(pool.finished, 1);
  }
}

// Spins until ready() or until `limit` has passed without progress() changing.
template <typename Ready, typename Progress>
bool spin_until(std::chrono::nanoseconds limit, Ready ready, Progress progress) {
  if (limit.count() == 0) return ready();
  uint32_t seen = progress();
  Clock::time_point deadline = Clock::now() + limit;
  for (;;) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      cpu_relax();
    }
    const Clock::time_point now = Clock::now();
    const uint32_t current = progress();
    if (current != seen) {
      seen = current;
      deadline = now + limit;
    } else if (now >= deadline) {
      return false;
    }
  }
}

void* worker_main(void* argument) {
  Pool& pool = *static_cast<Pool*>(argument);
  t_in_task = true;
  const auto ready = [&pool] {
    return pool.unclaimed.load(std::memory_order_relaxed) > 0 ||
           pool.stop.load(std::memory_order_relaxed);
  };
  // Jobs that went by without us count as progress: while they keep coming, sleeping would make
  // each of them pay for a wake-up.
  const auto progress = [&pool] { return pool.epoch.load(std::memory_order_relaxed); };
  while (!pool.stop.load(std::memory_order_acquire)) {
    run_chunks(pool);
    if (spin_until(pool.spin, ready, progress)) continue;
    // Order matters: read the futex word, announce the sleep, look once more. The owner does the
    // reverse (publish, look for sleepers, change the word, wake).
    const uint32_t epoch = pool.epoch.load(std::memory_order_seq_cst);
    pool.sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (pool.unclaimed.load(std::memory_order_seq_cst) == 0 &&
        !pool.stop.load(std::memory_order_seq_cst)) {
      futex_wait(pool.epoch, epoch);
    }
    pool.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
  drop_reference(&pool);
  return nullptr;
}

// Nullptr when there is no memory for it. Fewer workers than asked for when the system refuses
// threads; the caller then does more of the work itself.
Pool* start_pool(int threads) {
  Pool* pool = new (std::nothrow) Pool;
  if (pool == nullptr) return nullptr;
  pool->requested = threads;
  pool->generation = g_generation.load(std::memory_order_relaxed);
  // With more threads than CPUs a spinning thread keeps a working one from running.
  if (threads <= affinity_cpus()) pool->spin = kSpin;

  // Signals are for the application's threads (Python's handlers run in the main one). Faults stay
  // open so that faulthandler and sanitizers can report a crash in a worker.
  sigset_t blocked, previous;
  sigfillset(&blocked);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) {
    sigdelset(&blocked, fault);
  }
  pthread_sigmask(SIG_SETMASK, &blocked, &previous);
  // Detached: nobody joins them at exit, where a join could wait for a body that never ends.
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) == 0) {
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int workers = 0;
    for (; workers < threads - 1; ++workers) {
      pool->references.fetch_add(1, std::memory_order_relaxed);
      pthread_t thread;
      if (pthread_create(&thread, &attributes, worker_main, pool) != 0) {
        pool->references.fetch_sub(1, std::memory_order_relaxed);
        break;
      }
#if defined(__linux__)
      pthread_setname_np(thread, "pixleap");
#endif
    }
    pool->workers = workers;
    pthread_attr_destroy(&attributes);
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
  return pool;
}

// Tells the workers to leave; the last one frees the pool.
void retire_pool(Pool* pool) {
  pool->stop.store(true, std::memory_order_seq_cst);
  pool->epoch.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(pool->epoch, INT_MAX);
  drop_reference(pool);
}

// A new pool for every change of size: shrinking one in place would race with workers that have
// not yet noticed that they should leave. Only the owner of g_busy calls this.
Pool* acquire_pool(int threads) {
  if (g_pool != nullptr && g_pool->requested == threads) return g_pool;
  Pool* old = g_pool;
  g_pool = nullptr;
  if (old != nullptr) retire_pool(old);
  g_pool = start_pool(threads);
  return g_pool;
}

// Holds the pool for one parallel_for.
class Ownership {
 public:
  Ownership()
      : generation_(g_generation.load(std::memory_order_relaxed)),
        held_(!g_busy.load(std::memory_order_relaxed) &&
              !g_busy.exchange(true, std::memory_order_acquire)) {
    if (held_) t_in_task = true;
  }
  ~Ownership() {
    if (!held_) return;
    t_in_task = false;
    // In a child forked meanwhile the flag is no longer ours to clear.
    if (generation_ == g_generation.load(std::memory_order_relaxed)) {
      g_busy.store(false, std::memory_order_release);
    }
  }
  Ownership(const Ownership&) = delete;
  Ownership& operator=(const Ownership&) = delete;
  bool held() const { return held_; }

 private:
  uint32_t generation_;
  bool held_;
};

void wait_for_workers(Pool& pool) {
  const auto ready = [&pool] { return pool.done.load(std::memory_order_acquire) == pool.chunks; };
  // Progress is constant: bodies may be long, and the CPU is better used by someone else.
  if (ready() || spin_until(pool.spin, ready, [] { return 0u; })) return;
  pool.owner_sleeps.store(true, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t word = pool.finished.load(std::memory_order_seq_cst);
    if (pool.done.load(std::memory_order_seq_cst) == pool.chunks) break;
    if (pool.generation != g_generation.load(std::memory_order_relaxed)) {
      throw std::runtime_error(
          "parallel_for: the process was forked inside a body, and the child lost the threads that "
          "held the other chunks");
    }
    futex_wait(pool.finished, word);
  }
  pool.owner_sleeps.store(false, std::memory_order_relaxed);
}

void run_job(Pool& pool, int64_t n, int64_t grain, int64_t chunks, const Body& body) {
  pool.body = &body;
  pool.n = n;
  pool.grain = grain;
  pool.chunks = chunks;
  pool.control = fp_control();
  pool.done.store(0, std::memory_order_relaxed);
  pool.failed.store(false, std::memory_order_relaxed);
  pool.epoch.fetch_add(1, std::memory_order_relaxed);
  pool.unclaimed.store(chunks, std::memory_order_seq_cst);
  if (pool.sleepers.load(std::memory_order_seq_cst) > 0) {
    // Changes the word once more, for workers that read it after the first change.
    pool.epoch.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(pool.epoch, static_cast<int>(std::min<int64_t>(pool.workers, chunks - 1)));
  }
  run_chunks(pool);
  wait_for_workers(pool);
  if (pool.failed.load(std::memory_order_relaxed)) {
    // Moved out first: the pool must not keep the exception alive.
    std::rethrow_exception(std::exchange(pool.error, nullptr));
  }
}

void run_serially(int64_t n, int64_t grain, const Body& body) {
  for (int64_t begin = 0; begin < n;) {
    const int64_t end = begin + std::min(grain, n - begin);
    body(begin, end);
    begin = end;
  }
}

}  // namespace

int num_threads() {
  int setting = g_setting.load(std::memory_order_relaxed);
  if (setting != 0) return setting;
  int initial = threads_from_env("PIXLEAP_NUM_THREADS");
  if (initial == 0) initial = threads_from_env("OMP_NUM_THREADS");
  if (initial == 0) initial = std::min(affinity_cpus(), kMaxThreads);
  // A set_num_threads that came in between wins.
  return g_setting.compare_exchange_strong(setting, initial) ? initial : setting;
}

void set_num_threads(int n) {
  g_setting.store(std::clamp(n, 1, kMaxThreads), std::memory_order_relaxed);
}

void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (n <= grain) return body(0, n);
  const int threads = num_threads();
  if (threads == 1 || t_in_task) return run_serially(n, grain, body);
  {
    const Ownership ownership;
    Pool* pool = ownership.held() ? acquire_pool(threads) : nullptr;
    if (pool != nullptr) {
      const int64_t chunks = n / grain + (n % grain != 0 ? 1 : 0);
      return run_job(*pool, n, grain, chunks, body);
    }
  }
  run_serially(n, grain, body);
}

}  // namespace pixleap
