#include "ops/feature_moments/kernel.inl"
