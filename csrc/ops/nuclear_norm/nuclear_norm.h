// out[...] = sum of the singular values of a (..., m, n), or of a b^T with a (..., m, k) and
// b (..., n, k).
#pragma once

#include "core/view.h"

namespace pixleap {

void nuclear_norm(const Out& out, const View& a, const Optional& b);

}  // namespace pixleap
