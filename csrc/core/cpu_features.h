#pragma once

#include <optional>
#include <string_view>

namespace pixleap {

// What this process may execute: the CPU has it and the operating system saves its registers. All
// false on machines that are not x86-64.
struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, DQ and VL, on top of avx2
  bool avx512_bf16 = false;  // needs avx512
  bool amx_bf16 = false;     // the amx_* need AMX-TILE and the kernel's permission for tile data
  bool amx_int8 = false;
  bool amx_fp16 = false;
};

// Detected on the first call, which also asks the kernel for permission to use AMX.
const CpuFeatures& cpu_features();

// Kernel families, in rising order. Each one implies those before it.
enum class Isa : int { scalar, avx2, avx512, amx };
inline constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);
std::optional<Isa> parse_isa(std::string_view name);
// amx means avx512 with avx512_bf16 (to convert its operands) and amx_bf16.
bool isa_available(Isa isa);
Isa best_isa();

// The ISA that dispatch uses: what set_active_isa gave, else PIXLEAP_ISA, else best_isa(). The
// environment is read on first use; an empty value counts as absent. A value that is unknown or
// that this machine cannot run throws std::runtime_error with the list of those it can.
Isa active_isa();
void set_active_isa(Isa isa);

}  // namespace pixleap
