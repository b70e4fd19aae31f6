// Functions that kernels of both kinds call.
#pragma once

#if defined(__CUDACC__)
#define PIXLEAP_HD __host__ __device__
#else
#define PIXLEAP_HD
#endif
