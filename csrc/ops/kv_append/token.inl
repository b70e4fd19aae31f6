// One token, which `kv_append` and `kv_append_varlen` are made of.
#include <cstdlib>
#include <new>
#include <utility>

#include "ops/kv_append/kv_append.h"
#include "simd/quantise.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr float kNormFloor = 1e-12f;  // as torch.nn.functional.normalize

// Parameters are float32 or as qkv.
template <class T>
PIXLEAP_INLINE vf load_parameter(const void* data, DType dtype, int64_t i, int64_t lanes) {
  return dtype == DType::f32 ? load_upto(static_cast<const float*>(data) + i, lanes)
                             : load_upto(static_cast<const T*>(data) + i, lanes);
}

template <class T>
float scale_of_head(const KvAppendParams& p, int64_t head) {
  if (!p.q_scale) return 1.f;
  return load_parameter<T>(p.q_scale, p.q_scale_dtype, head * p.q_scale_stride, 1)[0];
}

// Rounds where the types differ.
template <class T, class To>
void copy_row(const T* in, To* out, int64_t dim) {
  if constexpr (sizeof(T) == sizeof(To)) {
    std::memcpy(out, in, static_cast<size_t>(dim) * sizeof(T));
  } else {
    for_each_vector(dim, [&](int64_t d, int64_t lanes) {
      store_upto(out + d, load_upto(in + d, lanes), lanes);
    });
  }
}

template <class T>
float sum_of_squares(const T* in, int64_t dim) {
  vf squares{};
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    const vf x = load_upto(in + d, lanes);
    squares = fma(x, x, squares);
  });
  return reduce_add(squares);
}

// Head h of q (which = 0) or k (1), normalised.
template <class T, class To>
void normalise_row(const KvAppendParams& p, int which, int64_t h, const T* in, To* out) {
  if (p.norm == QkNorm::none) return copy_row(in, out, p.dim);
  const float squares = sum_of_squares(in, p.dim);
  float number;
  if (p.norm == QkNorm::l2) {
    const float norm = __builtin_sqrtf(squares);
    number = (which == 0 ? scale_of_head<T>(p, h) : 1.f) / (norm < kNormFloor ? kNormFloor : norm);
  } else {
    number = 1.f / __builtin_sqrtf(squares / static_cast<float>(p.dim) + p.eps);
  }
  const vf factor = splat(number);
  const void* weight = p.weight[which];
  const int64_t row = h * p.weight_strides[which];
  for_each_vector(p.dim, [&](int64_t d, int64_t lanes) {
    vf x = load_upto(in + d, lanes) * factor;
    if (weight) x = x * load_parameter<T>(weight, p.weight_dtype[which], row + d, lanes);
    store_upto(out + d, x, lanes);
  });
}

// Swaps the lanes of every pair.
template <int... I>
PIXLEAP_INLINE vf swap_pairs(vf x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (I ^ 1)...);
}

// The angles of a token as every number of a head meets them: x[d] * cos[d] + x[partner] * sin[d],
// the partner being the neighbour, or the number `pairs` further or back. Made once for all heads.
template <class T>
void spread_angles(const KvAppendParams& p, int64_t b, int64_t l, int64_t row, float* cosine,
                   float* sine) {
  for (int which = 0; which < 2; ++which) {
    const int64_t at = p.rope_per_token
                           ? b * p.rope_strides[which][0] + l * p.rope_strides[which][1]
                           : row * p.rope_strides[which][1];
    float* to = which == 0 ? cosine : sine;
    for_each_vector(p.pairs, [&](int64_t i, int64_t lanes) {
      const vf x = load_parameter<T>(p.rope[which], p.rope_dtype[which], at + i, lanes);
      const vf back = which == 0 ? x : -x;
      if (!p.rope_interleaved) {
        store_upto(to + i, back, lanes);
        store_upto(to + p.pairs + i, x, lanes);
        return;
      }
      for (int64_t j = 0; j < lanes; ++j) to[2 * (i + j)] = back[j], to[2 * (i + j) + 1] = x[j];
    });
  }
}

// In place.
void rotate_row(const KvAppendParams& p, const float* cosine, const float* sine, float* x) {
  if (p.rope_interleaved) {
    for_each_vector(2 * p.pairs, [&](int64_t d, int64_t lanes) {
      const vf a = load_upto(x + d, lanes);
      const vf b = swap_pairs(a, std::make_integer_sequence<int, VW>());
      const vf y = fma(b, load_upto(sine + d, lanes), a * load_upto(cosine + d, lanes));
      store_upto(x + d, y, lanes);
    });
    return;
  }
  float* half = x + p.pairs;
  for_each_vector(p.pairs, [&](int64_t i, int64_t lanes) {
    const int64_t j = p.pairs + i;
    const vf a = load_upto(x + i, lanes), b = load_upto(half + i, lanes);
    const vf y = fma(b, load_upto(sine + i, lanes), a * load_upto(cosine + i, lanes));
    const vf z = fma(a, load_upto(sine + j, lanes), b * load_upto(cosine + j, lanes));
    store_upto(x + i, y, lanes);
    store_upto(half + i, z, lanes);
  });
}

// What the tokens of a task are made in.
struct TokenWork {
  float *row, *cosine, *sine;
  explicit TokenWork(const KvAppendParams& p) {
    const int64_t count = p.dim + 4 * p.pairs;
    row = static_cast<float*>(std::malloc(static_cast<size_t>(count) * sizeof(float)));
    if (!row) throw std::bad_alloc();
    cosine = row + p.dim, sine = cosine + 2 * p.pairs;
  }
  // Not a destructor: unwinding would need a weak symbol, and nothing between the two throws.
  void release() const { std::free(row); }
};

// in: (3, heads, dim) and q: (heads, dim), of token l of sample b. Its keys and values go to
// `position` of `slot`.
template <class T>
void append_token(const KvAppendParams& p, const T* in, T* q, int64_t b, int64_t l, int64_t slot,
                  int64_t position, const TokenWork& work) {
  if (p.pairs) spread_angles<T>(p, b, l, rope_row(p, b, l, position), work.cosine, work.sine);
  const auto make = [&](int which, int64_t h, const T* from, auto* to) {
    if (!p.pairs) return normalise_row(p, which, h, from, to);
    normalise_row(p, which, h, from, work.row);
    rotate_row(p, work.cosine, work.sine, work.row);
    if (static_cast<void*>(to) != work.row) copy_row(work.row, to, p.dim);
  };
  for (int64_t h = 0; h < p.heads; ++h) {
    const T* head = in + h * p.qkv_strides[3];
    const T *key = head + p.qkv_strides[2], *value = key + p.qkv_strides[2];
    make(0, h, head, q + h * p.out_strides[1]);
    int64_t at[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t* strides = p.cache_strides[i];
      at[i] = slot * strides[0] + h * strides[1] + position * strides[2];
    }
    if (p.cache_dtype != DType::i8) {
      make(1, h, key, static_cast<T*>(p.cache[0]) + at[0]);
      copy_row(value, static_cast<T*>(p.cache[1]) + at[1], p.dim);
      continue;
    }
    make(1, h, key, work.row);
    float scales[] = {quantise_row(work.row, static_cast<int8_t*>(p.cache[0]) + at[0], p.dim),
                      quantise_row(value, static_cast<int8_t*>(p.cache[1]) + at[1], p.dim)};
    for (int i = 0; i < 2; ++i) {
      const int64_t* strides = p.cache_scale_strides[i];
      p.cache_scale[i][slot * strides[0] + h * strides[1] + position * strides[2]] = scales[i];
    }
  }
}

}  // namespace
}  // namespace pixleap
