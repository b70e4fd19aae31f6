#include "ops/kv_append_varlen/kernel.inl"
