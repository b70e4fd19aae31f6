#include "ops/next_scale_update/kernel.inl"
