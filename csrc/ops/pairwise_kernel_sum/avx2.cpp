#include "ops/pairwise_kernel_sum/kernel.inl"
