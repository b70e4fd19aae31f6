// What the native tests of emulated CUDA share.
#pragma once

#include <cstdio>
#include <functional>
#include <string>

#include "cuda/launch.h"

namespace pixleap_test {

inline int failures = 0;
inline const pixleap::Device kDevice{};

inline void check(bool good, const std::string& what) {
  if (!good) {
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
  }
}

// The text of the error that a launch ends with; empty if it ends well.
inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

inline bool has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

void test_wgmma(const char* order);

}  // namespace pixleap_test
