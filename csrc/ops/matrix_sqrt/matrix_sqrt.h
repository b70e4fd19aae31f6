// out = the symmetric positive semi-definite X with X X = a, for a (..., d, d) of the same kind.
#pragma once

#include "core/view.h"

namespace pixleap {

void matrix_sqrt(const Out& out, const View& a);

}  // namespace pixleap
