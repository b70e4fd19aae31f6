// Shared memory of the emulated block: poison, copies under way, and what asynchronous products
// see.
#include <algorithm>
#include <cstring>

#include "cuda/emulate/state.h"

// Bounds of the static __shared__ variables of all kernels: see shared.ld.
extern "C" {
extern char pixleap_shared_start[] __attribute__((visibility("hidden")));
extern char pixleap_shared_stop[] __attribute__((visibility("hidden")));
}

namespace pixleap::emulate {
namespace {

constexpr int kPoison = 0xff;                   // a NaN of every floating type
constexpr uint32_t kDynamicAt = 1024 + 7 * 16;  // address of dynamic shared memory

// Not memset: the sanitizer's would look at the zones between variables, which are poisoned too.
__attribute__((no_sanitize("address"), optimize("no-tree-loop-distribute-patterns"))) void poison(
    void* data, size_t size) {
  auto* p = static_cast<volatile unsigned char*>(data);
  size_t i = 0;
  if (reinterpret_cast<uintptr_t>(p) % 8 == 0)
    for (; i + 8 <= size; i += 8) *reinterpret_cast<volatile uint64_t*>(p + i) = ~uint64_t{0};
  for (; i < size; ++i) p[i] = kPoison;
}

// Zones between variables included, which the sanitizer's memcpy would complain of.
__attribute__((no_sanitize("address"), optimize("no-tree-loop-distribute-patterns"))) void
copy_plain(unsigned char* to, const unsigned char* from, size_t size) {
  for (size_t i = 0; i < size; ++i) to[i] = from[i];
}

}  // namespace

void poison_shared() {
  poison(pixleap_shared_start, static_cast<size_t>(pixleap_shared_stop - pixleap_shared_start));
  poison(engine.dynamic, engine.dynamic_bytes);
  std::fill(engine.view.begin(), engine.view.end(), static_cast<unsigned char>(kPoison));
}

void show_to_products() { copy_plain(engine.view.data(), engine.dynamic, engine.dynamic_bytes); }

unsigned char* dynamic_shared() { return engine.dynamic; }

bool is_shared(const void* p, size_t size) {
  const auto* q = static_cast<const char*>(p);
  const auto* dynamic = reinterpret_cast<const char*>(engine.dynamic);
  return (q >= pixleap_shared_start && q + size <= pixleap_shared_stop) ||
         (q >= dynamic && q + size <= dynamic + engine.dynamic_bytes);
}

// Before its thread waits for it a copy may or may not have been made: neither the old contents of
// its place nor the new ones can be counted on.
void copy_async(void* shared, const void* global, bool valid, Where where) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("cp_async_16: an address that is not a multiple of 16", where);
  if (!is_shared(shared, 16)) fail("cp_async_16: not in shared memory", where);
  Copy copy{shared, {}, me().commits};
  if (valid) std::memcpy(copy.data, global, 16);
  poison(shared, 16);
  const auto* place = static_cast<const unsigned char*>(shared);
  if (place >= engine.dynamic && place < engine.dynamic + engine.dynamic_bytes)
    poison(engine.view.data() + (place - engine.dynamic), 16);
  me().copies.push_back(copy);
}

void commit_copies() { ++me().commits; }

void wait_copies(int newest) {
  Worker& worker = me();
  size_t kept = 0;
  for (const Copy& copy : worker.copies)
    if (copy.group < worker.commits - newest)
      std::memcpy(copy.shared, copy.data, 16), worker.fenced = false;
    else
      worker.copies[kept++] = copy;
  worker.copies.resize(kept);
}

uint32_t shared_address(const void* p, Where where) {
  const auto* q = static_cast<const unsigned char*>(p);
  if (!engine.dynamic || q < engine.dynamic || q > engine.dynamic + engine.dynamic_bytes)
    fail("shared_address: not in dynamic shared memory", where);
  return kDynamicAt + static_cast<uint32_t>(q - engine.dynamic);
}

const unsigned char* async_view(uint32_t address, size_t size) {
  if (address < kDynamicAt || address - kDynamicAt + size > engine.dynamic_bytes) return nullptr;
  return engine.view.data() + (address - kDynamicAt);
}

void fence_async() { me().fenced = true; }

}  // namespace pixleap::emulate
