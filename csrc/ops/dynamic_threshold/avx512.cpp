#include "ops/dynamic_threshold/kernel.inl"
