// Token arrays whose values index a vocabulary.
#pragma once

#include <string>

#include "core/check.h"

namespace pixleap {

// tokens (B, L) int64 on the CPU: all in [0, vocabulary).
inline void check_tokens(const Check& check, const View& tokens, int64_t vocabulary) {
  for (int64_t b = 0; b < tokens.size(0); ++b) {
    const int64_t* row = tokens.as<int64_t>() + b * tokens.stride(0);
    for (int64_t i = 0; i < tokens.size(1); ++i) {
      const int64_t token = row[i * tokens.stride(1)];
      if (token < 0 || token >= vocabulary)
        check.value(
            false, "tokens", "values from 0 to " + std::to_string(vocabulary - 1),
            std::to_string(token) + " at (" + std::to_string(b) + ", " + std::to_string(i) + ")");
    }
  }
}

}  // namespace pixleap
