// Standard normal numbers of a Philox stream: element e is lane e % 4 of group e / 4, so the same
// numbers come out for any vector width, thread count or split of a batch.
#pragma once

#include "core/philox.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

PIXLEAP_INLINE void normal_group(uint64_t seed, uint64_t offset, uint64_t group, float* four) {
  const Philox4 r = philox4x32_10(seed, group, offset);
  const NormalPair a = box_muller(r.v[0], r.v[1]), b = box_muller(r.v[2], r.v[3]);
  four[0] = a.first, four[1] = a.second, four[2] = b.first, four[3] = b.second;
}

// Elements [element, element + VW).
PIXLEAP_INLINE vf load_normal(uint64_t seed, uint64_t offset, uint64_t element) {
  float buffer[VW + 4];
  const int64_t skip = static_cast<int64_t>(element % 4);
  for (int i = 0; i < VW + (skip ? 4 : 0); i += 4)
    normal_group(seed, offset, element / 4 + static_cast<uint64_t>(i / 4), buffer + i);
  return load(buffer + skip);
}

}  // namespace
}  // namespace pixleap
