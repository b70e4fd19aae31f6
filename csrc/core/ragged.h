// Sequences of different lengths as consecutive rows of one array.
#pragma once

#include <vector>

#include "core/check.h"

namespace pixleap {

// A (count,) int64 array of the host, copied: what was checked cannot change any more.
std::vector<int64_t> host_integers(const Check& check, const View& v, int64_t count);

// (n + 1,): sequence i has the rows offsets[i] to offsets[i + 1] - 1 of `rows`, and none is left.
std::vector<int64_t> sequence_offsets(const Check& check, const View& offsets, int64_t rows);

// (n,): which of `caches` sequence i uses; i itself where the caller says nothing.
std::vector<int64_t> sequence_slots(const Check& check, const Optional& slots, int64_t n,
                                    const View& caches);

// fail if !ok: "<op>: argument '<name>' expected <expected>, got <got> for sequence <i>".
void check_sequence(const Check& check, bool ok, const char* name, const std::string& expected,
                    int64_t got, int64_t i);

}  // namespace pixleap
