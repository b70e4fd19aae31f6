#include "ops/attention/kernel.inl"
