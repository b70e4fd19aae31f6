#include "ops/sample_tokens/kernel.inl"
