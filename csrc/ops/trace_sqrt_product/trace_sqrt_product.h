// out[...] = tr (c1 c2)^(1/2) of symmetric positive semi-definite c1, c2 (..., d, d)
// info[...] = (method, rank of c1, rank of c2, estimated error, residual of c1, residual of c2)
#pragma once

#include <string_view>

#include "core/view.h"

namespace pixleap {

constexpr int kTraceInfo = 6;

void trace_sqrt_product(const Out& out, const Out& info, const View& c1, const View& c2,
                        std::string_view method);

}  // namespace pixleap
