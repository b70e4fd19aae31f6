#include "ops/speculative_accept/kernel.inl"
