// What the emulated device's parts share: who runs, who waits for what, and shared memory.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/emulate/engine.h"
#include "cuda/emulate/fiber.h"

namespace pixleap::emulate {

inline constexpr unsigned kMostThreads = 1024;
inline constexpr size_t kMostShared = 227 * 1024;

struct Copy {
  void* shared;
  unsigned char data[16];
  int64_t group;
};

struct Gathering {
  Lanes lanes;
  Collective what;
  Where where;
  uint32_t mask = 0, arrived = 0;
  int unread = 0;
  bool open = false;
};

struct Warp {
  std::deque<Gathering> gatherings;  // a deque: fibers hold references
  uint32_t exited = 0;
};

struct Worker : Thread {
  Fiber fiber;
  bool done = false;
  const Gathering* waits_for = nullptr;
  const char* waits_in = nullptr;
  Where waits_at;
  std::vector<Copy> copies;
  int64_t commits = 0;
  bool fenced = false;  // its writes, for asynchronous products
};

struct Meeting {  // of a warpgroup
  unsigned arrived = 0;
  const char* name = nullptr;
  Where where;
};

struct Barrier {
  unsigned arrived = 0;
  Where where;
  Votes votes{};
  Votes results[2]{};
  uint64_t generation = 0;
};

struct Engine {
  std::mutex mutex;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<Warp> warps;
  std::vector<Meeting> meetings;
  std::vector<uint64_t> ready;
  Fiber main;
  unsigned threads = 0, live = 0;
  Barrier barrier;
  FunctionRef<void()>* body = nullptr;
  std::string error;
  bool abandoned = false;
  int64_t launches = 0;
  unsigned char* dynamic = nullptr;
  size_t dynamic_bytes = 0;
  std::vector<unsigned char> view;  // of dynamic shared memory, by asynchronous products
  uint64_t random = 0;
};

extern Engine engine;

inline Worker& me() { return *static_cast<Worker*>(current); }
inline unsigned linear_index(const Worker& worker) { return worker.warp * 32 + worker.lane; }
inline std::string at(const Where& where) {
  std::string file = where.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

// NaN in all of shared memory, static and dynamic.
void poison_shared();

// What asynchronous products see of dynamic shared memory becomes what threads do.
void show_to_products();

}  // namespace pixleap::emulate
