#include "ops/linear_pack/kernel.inl"
