#include "ops/jacobi_update/kernel.inl"
