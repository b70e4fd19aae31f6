// In place of CUDA's own header where kernels are compiled as C++: the language and its intrinsics.
// What stands here is what the kernels use; add what a new one needs, with CUDA's meaning.
#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/emulate/engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __shared__ static  // one copy, as blocks run one after another; shared.ld collects them
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (::pixleap::emulate::current->index)
#define blockIdx (::pixleap::emulate::block_index)
#define blockDim (::pixleap::emulate::block_size)
#define gridDim (::pixleap::emulate::grid_size)
constexpr int warpSize = 32;

#include "cuda/emulate/arithmetic.h"
#include "cuda/emulate/vectors.h"
#include "cuda/emulate/warp.h"
