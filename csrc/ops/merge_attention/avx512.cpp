#include "ops/merge_attention/kernel.inl"
