#include <bit>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "cuda/emulate/state.h"

namespace pixleap::emulate {

Thread* current = nullptr;
uint3 block_index, block_size, grid_size;

Engine engine;

namespace {

Order order = Order::off;
uint64_t order_seed = 0;
int capability_major = 9;

std::string name_of(const uint3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

uint64_t next_random() {  // splitmix64
  uint64_t z = engine.random += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void set_ready(unsigned thread) { engine.ready[thread / 64] |= uint64_t{1} << thread % 64; }
void set_waiting(unsigned thread) { engine.ready[thread / 64] &= ~(uint64_t{1} << thread % 64); }

// The first ready thread from `from` on, going round; kMostThreads if there is none.
unsigned next_ready(unsigned from) {
  const auto words = static_cast<unsigned>(engine.ready.size());
  for (unsigned i = 0; i <= words; ++i) {
    const unsigned word = (from / 64 + i) % words;
    uint64_t bits = engine.ready[word];
    if (i == 0) bits &= ~uint64_t{0} << from % 64;
    if (bits) return word * 64 + static_cast<unsigned>(std::countr_zero(bits));
  }
  return kMostThreads;
}

unsigned last_ready() {
  for (size_t word = engine.ready.size(); word-- > 0;)
    if (engine.ready[word])
      return static_cast<unsigned>(word) * 64 + 63 -
             static_cast<unsigned>(std::countl_zero(engine.ready[word]));
  return kMostThreads;
}

unsigned pick() {
  switch (order) {
    case Order::reverse:
      return last_ready();
    case Order::shuffle:
      return next_ready(static_cast<unsigned>(next_random() % engine.threads));
    default:
      return next_ready(0);
  }
}

void leave_for_main() {
  Worker& worker = me();
  current = nullptr;
  switch_fiber(worker.fiber, engine.main, worker.done);
}

std::string waiting() {
  std::string text;
  for (unsigned begin = 0; begin < engine.threads;) {
    const Worker& first = *engine.workers[begin];
    const auto state = [](const Worker& w) {
      return w.done ? std::string("have returned")
                    : std::string("wait in ") + w.waits_in + " at " + at(w.waits_at);
    };
    unsigned end = begin + 1;
    while (end < engine.threads && state(*engine.workers[end]) == state(first)) ++end;
    text += (text.empty() ? "threads " : ", ") + std::to_string(begin) + " to " +
            std::to_string(end - 1) + " " + state(first);
    if (text.size() > 600) return text + ", ...";
    begin = end;
  }
  return text;
}

// Runs others until this one is ready; where it has returned, for good.
void schedule() {
  Worker& worker = me();
  const unsigned next = pick();
  if (next == kMostThreads) {
    if (engine.live > 0)
      engine.error = "block " + name_of(block_index) + ": no thread can go on: " + waiting();
    leave_for_main();
    return;
  }
  Worker& other = *engine.workers[next];
  current = &other;
  if (&other != &worker) switch_fiber(worker.fiber, other.fiber, worker.done);
}

void wait(const char* in, const Where& where) {
  Worker& worker = me();
  worker.waits_in = in;
  worker.waits_at = where;
  schedule();
}

void release_barrier() {
  Barrier& b = engine.barrier;
  b.votes.all = b.votes.count == static_cast<int>(b.arrived);
  b.results[b.generation % 2] = b.votes;
  ++b.generation;
  b.arrived = 0;
  b.votes = {};
  bool fenced = true;
  for (unsigned i = 0; i < engine.threads; ++i) {
    Worker& worker = *engine.workers[i];
    if (worker.done) continue;
    fenced = fenced && worker.fenced;
    worker.fenced = false;
    set_ready(i);
  }
  if (fenced) show_to_products();
}

void complete_if_full(Warp& warp, Gathering& g) {
  const uint32_t missing = g.mask & ~g.arrived;
  if (missing & warp.exited && !g.what.without_exited)
    fail(std::string(g.what.name) + ": lane " +
             std::to_string(std::countr_zero(missing & warp.exited)) + " of mask " +
             std::to_string(g.mask) + " has returned",
         g.where);
  if (missing & ~warp.exited) return;
  g.open = false;
  g.unread = std::popcount(g.arrived);
  g.lanes.given = g.arrived;
  const auto first = static_cast<unsigned>(&warp - engine.warps.data()) * 32;
  for (uint32_t lanes = g.arrived; lanes; lanes &= lanes - 1)
    set_ready(first + static_cast<unsigned>(std::countr_zero(lanes)));
}

void thread_main() {
  (*engine.body)();
  Worker& worker = me();
  worker.done = true;
  --engine.live;
  set_waiting(linear_index(worker));
  Warp& warp = engine.warps[worker.warp];
  warp.exited |= 1u << worker.lane;
  for (Gathering& g : warp.gatherings)
    if (g.open) complete_if_full(warp, g);
  Barrier& b = engine.barrier;
  if (b.arrived > 0 && b.arrived == engine.live) release_barrier();
  schedule();
  std::abort();  // a thread that has returned is not run again
}

void start_block(dim3 block) {
  poison_shared();
  std::fill(engine.meetings.begin(), engine.meetings.end(), Meeting{});
  reset_products(engine.threads);
  engine.live = engine.threads;
  engine.barrier = {};
  std::fill(engine.ready.begin(), engine.ready.end(), 0);
  for (Warp& warp : engine.warps) {
    warp.exited = 0;
    warp.gatherings.clear();
  }
  for (unsigned i = 0; i < engine.threads; ++i) {
    Worker& worker = *engine.workers[i];
    worker.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    worker.done = false;
    worker.copies.clear();
    worker.commits = 0;
    worker.fenced = false;
    start_fiber(worker.fiber, thread_main, engine.abandoned);
    set_ready(i);
  }
  engine.abandoned = false;
}

}  // namespace

void set_order(Order o, uint64_t seed) {
  const std::lock_guard lock(engine.mutex);
  order = o;
  order_seed = seed;
}

int64_t launches() { return engine.launches; }

bool enabled() { return order != Order::off; }

void set_capability(int major) { capability_major = major; }
int capability() { return capability_major; }

void fail(const std::string& what, Where where) {
  engine.error = "block " + name_of(block_index) + ", thread " + name_of(current->index) + ": " +
                 what + " (" + at(where) + ")";
  leave_for_main();
  std::abort();
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, FunctionRef<void()> body) {
  const std::lock_guard lock(engine.mutex);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  // What the driver refuses.
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu ||
      threads == 0 || threads > kMostThreads || shared_bytes > kMostShared)
    throw BackendError("CUDA launch failed: invalid configuration argument: grid " + name_of(grid) +
                       ", block " + name_of(block) + ", shared memory " +
                       std::to_string(shared_bytes));
  ++engine.launches;
  block_size = block;
  grid_size = grid;
  engine.threads = static_cast<unsigned>(threads);
  engine.random = order_seed;
  engine.body = &body;
  engine.error.clear();
  while (engine.workers.size() < threads) {
    auto worker = std::make_unique<Worker>();
    const auto i = static_cast<unsigned>(engine.workers.size());
    worker->warp = i / 32;
    worker->lane = i % 32;
    engine.workers.push_back(std::move(worker));
  }
  engine.warps.resize((threads + 31) / 32);
  engine.meetings.resize(threads / 128);
  engine.ready.assign((threads + 63) / 64, 0);
  // Of its own, of the size asked for: AddressSanitizer sees what lies past it.
  const std::unique_ptr<unsigned char, void (*)(void*)> dynamic(
      shared_bytes ? static_cast<unsigned char*>(std::aligned_alloc(16, shared_bytes)) : nullptr,
      std::free);
  engine.dynamic = dynamic.get();
  engine.dynamic_bytes = shared_bytes;
  engine.view.resize(shared_bytes);
  for (unsigned z = 0; z < grid.z && engine.error.empty(); ++z)
    for (unsigned y = 0; y < grid.y && engine.error.empty(); ++y)
      for (unsigned x = 0; x < grid.x && engine.error.empty(); ++x) {
        block_index = {x, y, z};
        start_block(block);
        Worker& first = *engine.workers[pick()];
        current = &first;
        switch_fiber(engine.main, first.fiber, false);
      }
  engine.dynamic = nullptr;
  engine.dynamic_bytes = 0;
  if (!engine.error.empty()) {
    engine.abandoned = true;
    throw EmulationError("CUDA emulation: " + engine.error);
  }
}

Votes block_barrier(int predicate, Where where) {
  Barrier& b = engine.barrier;
  if (b.arrived == 0)
    b.where = where;
  else if (b.where.line() != where.line() ||
           std::strcmp(b.where.file_name(), where.file_name()) != 0)
    fail("__syncthreads, where others wait in that of " + at(b.where), where);
  const uint64_t generation = b.generation;
  ++b.arrived;
  b.votes.count += predicate != 0;
  b.votes.any |= predicate != 0;
  set_waiting(linear_index(me()));
  if (b.arrived == engine.live) release_barrier();
  wait("__syncthreads", where);
  return b.results[generation % 2];
}

void gather(const Collective& what, uint32_t mask, const void* mine, size_t size,
            FunctionRef<void(const Lanes&)> use, Where where) {
  Worker& worker = me();
  Warp& warp = engine.warps[worker.warp];
  const uint32_t bit = 1u << worker.lane;
  if (!(mask & bit)) fail(std::string(what.name) + ": a lane that its mask does not name", where);
  Gathering *g = nullptr, *unused = nullptr;
  for (Gathering& other : warp.gatherings) {
    if (other.open && other.mask == mask && !(other.arrived & bit)) g = &other;
    if (!other.open && other.unread == 0) unused = &other;
  }
  if (!g) {
    g = unused ? unused : &warp.gatherings.emplace_back();
    g->what = what;
    g->where = where;
    g->mask = mask;
    g->arrived = 0;
    g->open = true;
  }
  if (std::strcmp(g->what.name, what.name) != 0 ||
      (what.aligned && g->where.line() != where.line()))
    fail(std::string(what.name) + ", where other lanes wait in " + g->what.name + " at " +
             at(g->where),
         where);
  std::memcpy(g->lanes.data[worker.lane], mine, size);
  g->arrived |= bit;
  set_waiting(linear_index(worker));
  complete_if_full(warp, *g);
  wait(what.name, where);
  use(g->lanes);
  --g->unread;
}

void meet_warpgroup(const char* name, Where where) {
  const unsigned group = me().warp / 4;
  if (group >= engine.meetings.size())
    fail(std::string(name) + ": a warpgroup of fewer than 128 threads", where);
  Meeting& meeting = engine.meetings[group];
  if (meeting.arrived == 0)
    meeting.name = name, meeting.where = where;
  else if (std::strcmp(meeting.name, name) != 0 || meeting.where.line() != where.line())
    fail(std::string(name) + ", where others of the warpgroup wait in " + meeting.name + " at " +
             at(meeting.where),
         where);
  set_waiting(linear_index(me()));
  if (++meeting.arrived == 128) {
    meeting.arrived = 0;
    for (unsigned i = 0; i < 128; ++i) set_ready(group * 128 + i);
  }
  wait(name, where);
}

}  // namespace pixleap::emulate
