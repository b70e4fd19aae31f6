#include "ops/layer_norm/kernel.inl"
