// One head of one token by one warp: `kv_append` and `kv_append_varlen` are made of it.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/launch.h"
#include "ops/kv_append/kv_append.h"

namespace pixleap {

constexpr int kAppendBlock = 128;

// Parameters are float32 or as qkv.
template <class T>
__device__ float append_parameter(const void* data, DType dtype, int64_t i) {
  if constexpr (!std::is_same_v<T, float>)
    if (dtype != DType::f32) return to_accumulate(static_cast<const T*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

// The factor of head `head` of q (which = 0) or k (1).
template <class T>
__device__ float append_factor(const KvAppendParams& p, int which, int64_t head, const T* in,
                               int lane) {
  if (p.norm == QkNorm::none) return 1.f;
  float squares = 0.f;
  for (int64_t d = lane; d < p.dim; d += 32) {
    const float x = to_accumulate(in[d]);
    squares += x * x;
  }
  for (int step = 16; step; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
  if (p.norm == QkNorm::rms) return 1.f / sqrtf(squares / static_cast<float>(p.dim) + p.eps);
  const float scale = which == 0 && p.q_scale
                          ? append_parameter<T>(p.q_scale, p.q_scale_dtype, head * p.q_scale_stride)
                          : 1.f;
  return scale / fmaxf(sqrtf(squares), 1e-12f);
}

// The numbers of a head of q or k as they leave, one at a time.
template <class T>
struct AppendRow {
  const KvAppendParams& p;
  const T* in;
  int which;
  int64_t weights, angles[2];  // where the head's and the token's begin
  float factor;

  __device__ float normalised(int64_t d) const {
    const float x = to_accumulate(in[d]) * factor;
    return p.weight[which]
               ? x * append_parameter<T>(p.weight[which], p.weight_dtype[which], weights + d)
               : x;
  }
  __device__ float operator()(int64_t d) const {
    const float x = normalised(d);
    if (d >= 2 * p.pairs) return x;
    const int64_t pair = p.rope_interleaved ? d / 2 : d < p.pairs ? d : d - p.pairs;
    const bool first = p.rope_interleaved ? d % 2 == 0 : d < p.pairs;
    const int64_t step = p.rope_interleaved ? 1 : p.pairs;
    const float partner = normalised(first ? d + step : d - step);
    const float cosine = append_parameter<T>(p.rope[0], p.rope_dtype[0], angles[0] + pair);
    const float sine = append_parameter<T>(p.rope[1], p.rope_dtype[1], angles[1] + pair);
    return fmaf(partner, first ? -sine : sine, x * cosine);
  }
};

// As `quantise_row` on the CPU: the scale, NaN where a number is not finite.
template <class Row>
__device__ float append_quantised(const Row& row, int64_t dim, int8_t* out, int lane) {
  float most = 0.f;
  bool bad = false;
  for (int64_t d = lane; d < dim; d += 32) {
    const float x = fabsf(row(d));
    bad = bad || !(x < INFINITY);
    most = fmaxf(most, x);
  }
  for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  bad = __any_sync(0xffffffffu, bad);
  const float scale = bad ? nanf("") : most / 127.f;
  const float divisor = scale > 0.f ? scale : 1.f;
  for (int64_t d = lane; d < dim; d += 32)
    out[d] =
        bad ? int8_t{0} : static_cast<int8_t>(rintf(fminf(fmaxf(row(d) / divisor, -127.f), 127.f)));
  return scale;
}

// Head `head` of token l of sample b, whose keys and values go to `position` of `slot`.
// in (3, heads, dim) and out (heads, dim) are the token's.
template <class T>
__device__ void append_head(const KvAppendParams& p, int64_t head, const T* in, T* out, int64_t b,
                            int64_t l, int64_t slot, int64_t position, int lane) {
  const T* parts[3];
  for (int i = 0; i < 3; ++i) parts[i] = in + i * p.qkv_strides[2] + head * p.qkv_strides[3];
  const int64_t row = rope_row(p, b, l, position);
  const auto row_of = [&](int which) {
    AppendRow<T> r{p, parts[which], which, head * p.weight_strides[which], {}, 0.f};
    for (int i = 0; i < 2; ++i)
      r.angles[i] = p.rope_per_token ? b * p.rope_strides[i][0] + l * p.rope_strides[i][1]
                                     : row * p.rope_strides[i][1];
    r.factor = append_factor(p, which, head, parts[which], lane);
    // Where the tables have no row for the token, which only a GPU finds here.
    if (p.pairs && !p.rope_per_token && (row < 0 || row >= p.rope_rows)) {
      r.factor = nanf("");
      r.angles[0] = r.angles[1] = 0;
    }
    return r;
  };
  const auto write = [&](const auto& from, T* to) {
    for (int64_t d = lane; d < p.dim; d += 32) from_accumulate(from(d), to[d]);
  };
  const AppendRow<T> query = row_of(0), key = row_of(1);
  const auto value = [&](int64_t d) { return to_accumulate(parts[2][d]); };
  write(query, out + head * p.out_strides[1]);
  const auto at = [&](const int64_t(&s)[3]) { return slot * s[0] + head * s[1] + position * s[2]; };
  if (p.cache_dtype != DType::i8) {
    write(key, static_cast<T*>(p.cache[0]) + at(p.cache_strides[0]));
    write(value, static_cast<T*>(p.cache[1]) + at(p.cache_strides[1]));
    return;
  }
  const auto quantise = [&](const auto& from, int i) {
    const float scale = append_quantised(
        from, p.dim, static_cast<int8_t*>(p.cache[i]) + at(p.cache_strides[i]), lane);
    if (lane == 0) p.cache_scale[i][at(p.cache_scale_strides[i])] = scale;
  };
  quantise(key, 0);
  quantise(value, 1);
}

// Calls f.template operator()<T>() for the types of qkv.
template <class F>
void with_append_type(DType t, F&& f) {
  with_cuda_type(t, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>) f.template operator()<T>();
  });
}

}  // namespace pixleap
