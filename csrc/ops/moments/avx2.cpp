#include "ops/moments/kernel.inl"
