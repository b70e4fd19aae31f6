#include "ops/selective_scan/kernel.inl"
