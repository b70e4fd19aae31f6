#include "ops/random_normal/kernel.inl"
