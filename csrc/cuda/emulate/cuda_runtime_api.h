#pragma once
#include "cuda/emulate/cuda_runtime.h"
