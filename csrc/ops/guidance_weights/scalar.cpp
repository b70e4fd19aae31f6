#include "ops/guidance_weights/kernel.inl"
