#include "ops/pairwise_topk/kernel.inl"
