#include "ops/lincomb/kernel.inl"
