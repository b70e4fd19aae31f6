#include "cpu_features.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pixleap {
namespace {

#if defined(__x86_64__)

constexpr bool bit(uint64_t word, int index) { return ((word >> index) & 1) != 0; }
constexpr bool all(uint64_t word, uint64_t mask) { return (word & mask) == mask; }

// The register sets that the operating system saves. Inline asm, since _xgetbv needs -mxsave.
uint64_t read_xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Tile registers are 8 KiB per thread, so Linux hands them out on request only. The permission is
// the process's and is inherited by threads and children.
bool request_tile_permission() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures features;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool fma = bit(ecx, 12), osxsave = bit(ecx, 27), avx = bit(ecx, 28), f16c = bit(ecx, 29);
  if (!osxsave || !avx) return features;
  const uint64_t xcr0 = read_xcr0();
  constexpr uint64_t kYmmState = 0x6;       // SSE, AVX
  constexpr uint64_t kZmmState = 0xe6;      // and opmask, ZMM_Hi256, Hi16_ZMM
  constexpr uint64_t kTileState = 0x60000;  // XTILECFG, XTILEDATA
  if (!all(xcr0, kYmmState)) return features;

  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return features;
  const unsigned subleaves = eax, leaf7_ebx = ebx, leaf7_edx = edx;
  unsigned leaf71_eax = 0;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) leaf71_eax = eax;

  features.avx2 = bit(leaf7_ebx, 5) && fma && f16c;
  features.avx512 = features.avx2 && all(xcr0, kZmmState) && bit(leaf7_ebx, 16) &&
                    bit(leaf7_ebx, 17) && bit(leaf7_ebx, 30) && bit(leaf7_ebx, 31);
  features.avx512_bf16 = features.avx512 && bit(leaf71_eax, 5);
  if (bit(leaf7_edx, 24) && all(xcr0, kTileState) && request_tile_permission()) {
    features.amx_bf16 = bit(leaf7_edx, 22);
    features.amx_int8 = bit(leaf7_edx, 25);
    features.amx_fp16 = bit(leaf71_eax, 21);
  }
  return features;
}

#else

CpuFeatures detect() { return {}; }

#endif

constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "amx"};
constexpr int kUnset = -1;
constinit std::atomic<int> g_active{kUnset};

[[noreturn]] void refuse(const std::string& subject, const char* reason) {
  std::string available;
  for (int i = 0; i < kIsaCount; ++i) {
    if (!isa_available(static_cast<Isa>(i))) continue;
    if (!available.empty()) available += ", ";
    available += kNames[i];
  }
  throw std::runtime_error(subject + " " + reason + "; available: " + available);
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const char* isa_name(Isa isa) {
  const int index = static_cast<int>(isa);
  return index >= 0 && index < kIsaCount ? kNames[index] : "unknown";
}

std::optional<Isa> parse_isa(std::string_view name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (name == kNames[i]) return static_cast<Isa>(i);
  }
  return std::nullopt;
}

bool isa_available(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
#if defined(PIXLEAP_EMULATE_ISA)
  if (isa == Isa::avx512 || isa == Isa::amx) return cpu.avx2;  // what they are compiled to
#endif
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return cpu.avx2;
    case Isa::avx512:
      return cpu.avx512;
    case Isa::amx:
      return cpu.avx512_bf16 && cpu.amx_bf16;
  }
  return false;
}

Isa best_isa() {
  for (int i = kIsaCount - 1; i > 0; --i) {
    if (isa_available(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::scalar;
}

Isa active_isa() {
  int active = g_active.load(std::memory_order_relaxed);
  if (active != kUnset) return static_cast<Isa>(active);
  Isa isa = best_isa();
  if (const char* text = std::getenv("PIXLEAP_ISA"); text != nullptr && *text != '\0') {
    const std::string subject = "PIXLEAP_ISA='" + std::string(text) + "'";
    const std::optional<Isa> wanted = parse_isa(text);
    // Nothing is remembered when these throw, so that every later use throws as well.
    if (!wanted) refuse(subject, "is not a known instruction set");
    if (!isa_available(*wanted)) refuse(subject, "cannot run on this machine");
    isa = *wanted;
  }
  // A set_active_isa that came in between wins.
  return g_active.compare_exchange_strong(active, static_cast<int>(isa)) ? isa
                                                                         : static_cast<Isa>(active);
}

void set_active_isa(Isa isa) {
  if (!isa_available(isa)) {
    refuse("instruction set '" + std::string(isa_name(isa)) + "'", "cannot run on this machine");
  }
  g_active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace pixleap
