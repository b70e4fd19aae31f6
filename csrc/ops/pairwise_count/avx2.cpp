#include "ops/pairwise_count/kernel.inl"
