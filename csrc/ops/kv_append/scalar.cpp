#include "ops/kv_append/kernel.inl"
