#include "ops/linear/kernel.inl"
