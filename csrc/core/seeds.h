// The streams that the samples of a call draw from: by numbers of the call, or by an array that the
// kernel reads, so that a captured CUDA graph can be replayed with others.
#pragma once

#include <initializer_list>

#include "core/check.h"
#include "core/host_device.h"

namespace pixleap {

struct Seeds {
  const int64_t* seeds;    // (B,) in the place of the call's seed; null: that
  const int64_t* samples;  // (B,) indices beside them, from first_sample on; null: 0
  int64_t stride;
};

// Sample b's seed, and its index in the stream of it.
PIXLEAP_HD static inline uint64_t seed_of(const Seeds& s, uint64_t seed, int64_t b) {
  return s.seeds ? static_cast<uint64_t>(s.seeds[b * s.stride]) : seed;
}
PIXLEAP_HD static inline uint64_t sample_of(const Seeds& s, uint64_t first_sample, int64_t b) {
  if (s.samples) return first_sample + static_cast<uint64_t>(s.samples[b * s.stride]);
  return first_sample + (s.seeds ? 0 : static_cast<uint64_t>(b));
}

// seeds (B,), or (B, 2) with the samples' indices; where `like` is, apart from what is written.
inline Seeds read_seeds(const Check& check, const Optional& seeds, int64_t batch, const View& like,
                        std::initializer_list<const View*> outs) {
  if (!seeds.defined) return {};
  check.dtype(seeds, {DType::i64});
  check.same_device(seeds, like);
  if (seeds.ndim == 2)
    check.shape(seeds, {batch, 2});
  else
    check.shape(seeds, {batch});
  for (const View* out : outs) check.no_overlap(*out, seeds, false);
  const int64_t* data = seeds.as<const int64_t>();
  return {data, seeds.ndim == 2 ? data + seeds.stride(1) : nullptr, seeds.stride(0)};
}

}  // namespace pixleap
