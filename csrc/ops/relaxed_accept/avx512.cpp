#include "ops/relaxed_accept/kernel.inl"
