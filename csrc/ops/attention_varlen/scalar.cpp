#include "ops/attention_varlen/kernel.inl"
