#include "ops/hadamard_projection/kernel.inl"
