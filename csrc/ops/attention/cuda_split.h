// One query by float32 dot products: 8 lanes (16 from D = 129) take every 16th (8th) key, 16 bytes
// at a time. Keys come in chunks that are summed apart and added in order, by one block or, where
// there are few queries, by a block each and a second kernel: the bits are the same.
#pragma once

#include "ops/attention/cuda_head.h"

namespace pixleap {

// Queries of a head, up to which each has blocks of its own. In 16 bits tensor cores read the keys
// once for all queries of a head instead.
inline bool attention_by_stream(const AttentionParams& p, int64_t queries) {
  const bool tensor_cores = p.dtype != DType::f32 && p.kv_dtype == p.dtype;
  return queries <= (tensor_cores ? kAttentionStreamHalfUpTo : kAttentionStreamUpTo) &&
         !p.window.near_rows;
}

constexpr int kStreamBlocks = 2;  // that an SM has at least: for more, registers would be spilled

__device__ inline float to_accumulate(int8_t x) { return static_cast<float>(x); }

template <class KV, int D>
struct StreamAttention {
  static constexpr int kLanes = D == 256 ? 16 : 8, kStreams = kAttentionThreads / kLanes;
  static constexpr int kKeys = 4;          // of a stream at a time: their loads overlap
  static constexpr int kOwn = D / kLanes;  // dimensions of a lane
  static constexpr int kMost = static_cast<int>(16 / sizeof(KV));
  static constexpr int kVector = kMost < kOwn ? kMost : kOwn;  // of which one load brings as many
  // Dimension number i of a lane.
  __device__ static int dim(int lane, int i) {
    return (i / kVector * kLanes + lane) * kVector + i % kVector;
  }
};

template <class KV>
struct StreamRows {
  const KV* data;
  int64_t stride;
  const float* scale;
  int64_t scale_stride;
  bool vectors;  // whole loads, aligned

  __device__ StreamRows(const void* data, int64_t at, int64_t stride, const float* scale,
                        int64_t scale_at, int64_t scale_stride, int64_t dim, int vector)
      : data(static_cast<const KV*>(data) + at),
        stride(stride),
        scale(scale ? scale + scale_at : nullptr),
        scale_stride(scale_stride) {
    vectors = reinterpret_cast<uintptr_t>(this->data) % (vector * sizeof(KV)) == 0 &&
              stride % vector == 0 && dim % vector == 0;
  }
  __device__ float factor(int64_t row) const { return scale ? scale[row * scale_stride] : 1.f; }

  // A lane's part of a row; zeros where the row ends.
  template <class Shape>
  __device__ void load(int64_t row, int lane, int64_t dim, KV (&x)[Shape::kOwn]) const {
    constexpr int kVector = Shape::kVector;
    using Word = std::conditional_t<sizeof(KV) * kVector == 16, uint4, uint2>;
    static_assert(sizeof(Word) == sizeof(KV) * kVector);
    const KV* const from = data + row * stride;
#pragma unroll
    for (int i = 0; i < Shape::kOwn; i += kVector) {
      const int d = Shape::dim(lane, i);
      if (vectors) {
        Word word{};
        if (d < dim) word = *reinterpret_cast<const Word*>(from + d);
        memcpy(x + i, &word, sizeof word);
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) x[i + e] = d + e < dim ? from[d + e] : KV(0.f);
      }
    }
  }
};

// The sums of chunks one after the other; `max` in units of ln 2.
struct StreamSums {
  float max = -INFINITY, sum = 0.f, decay = 1.f, factor = 0.f;

  __device__ void add(float chunk_max, float chunk_sum) {
    const float top = fmaxf(max, chunk_max), shift = softmax_shift(top);
    decay = exp2f(max - shift), factor = exp2f(chunk_max - shift);
    max = top;
    sum = fmaf(chunk_sum, factor, __fmul_rn(sum, decay));
  }
  // A number of the output; after add.
  __device__ float value(float before, float chunk) const {
    return fmaf(chunk, factor, __fmul_rn(before, decay));
  }
};

// What a thread has of an output: numbers threadIdx.x and threadIdx.x + kAttentionThreads.
constexpr int kStreamOwn = kAttentionMaxDim / kAttentionThreads;

__device__ inline void finish_stream(const AttentionParams& p, const AttentionHead& h,
                                     const StreamSums& sums, const float (&x)[kStreamOwn]) {
  const int64_t to = h.out + attention_row(p, h, h.first_query) * p.out_strides[2];
  const float inverse = 1.f / sums.sum;
  for (int i = 0; i < kStreamOwn; ++i) {
    const auto d = static_cast<int>(threadIdx.x) + i * kAttentionThreads;
    if (d < p.dim) attention_store(p.out, p.dtype, to + d, sums.sum == 0.f ? 0.f : x[i] * inverse);
  }
  if (threadIdx.x == 0) store_lse(p, h, h.first_query, sums.max, sums.sum);
}

// Numbers of a chunk in the scratch: maximum, sum, values.
__device__ inline float* stream_part(const AttentionParams& p, int64_t work, int64_t chunk) {
  return p.split + (work * attention_chunks(p.keys) + chunk) * (p.dim + 2);
}

// part: null where this block has all chunks, else where it leaves the sums of chunk `first`.
template <class KV, int D>
__device__ void attend_stream(const AttentionParams& p, const AttentionHead& h, int64_t first,
                              float* part) {
  using Shape = StreamAttention<KV, D>;
  constexpr int kStreams = Shape::kStreams, kKeys = Shape::kKeys, kOwn = Shape::kOwn;
  __shared__ float parts[kStreams][D], maxima[kStreams], sums[kStreams];
  const int lane = static_cast<int>(threadIdx.x) % Shape::kLanes;
  const int stream = static_cast<int>(threadIdx.x) / Shape::kLanes;
  const StreamRows<KV> k{
      p.k, h.k, p.k_strides[2], p.k_scale, h.k_scale, p.k_scale_strides[2], p.dim, Shape::kVector};
  const StreamRows<KV> v{
      p.v, h.v, p.v_strides[2], p.v_scale, h.v_scale, p.v_scale_strides[2], p.dim, Shape::kVector};
  const int64_t all = attention_seen(p, h, h.first_query);
  const int64_t begin = first * kAttentionChunk;
  const int64_t end = part && begin + kAttentionChunk < all ? begin + kAttentionChunk : all;
  const int64_t query = attention_row(p, h, h.first_query);
  float q[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int d = Shape::dim(lane, i);
    q[i] = d < p.dim
               ? element_at(p.q, p.dtype, h.q + query * p.q_strides[2] + d) * (p.scale * kLog2OfE)
               : 0.f;
  }
  StreamSums total;
  float x[kStreamOwn] = {};
  for (int64_t start = begin; start < end; start += kAttentionChunk) {
    const int64_t seen = start + kAttentionChunk < end ? start + kAttentionChunk : end;
    float o[kOwn] = {}, max = -INFINITY, sum = 0.f;
    for (int64_t j = start; j < seen; j += kStreams * kKeys) {
      float s[kKeys] = {};
      int64_t row[kKeys] = {};
      {
        KV key[kKeys][kOwn];
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
          const int64_t at = j + n * kStreams + stream;
          if (at >= seen) continue;
          row[n] = attention_row(p, h, at);
          k.template load<Shape>(row[n], lane, p.dim, key[n]);
        }
#pragma unroll
        for (int n = 0; n < kKeys; ++n) {
          if (j + n * kStreams + stream >= seen) continue;
#pragma unroll
          for (int i = 0; i < kOwn; ++i) s[n] = fmaf(q[i], to_accumulate(key[n][i]), s[n]);
        }
      }
      KV value[kKeys][kOwn];  // asked for before the scores are done
      float top = max;
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        const int64_t at = j + n * kStreams + stream;
        if (at < seen) v.template load<Shape>(row[n], lane, p.dim, value[n]);
        for (int step = Shape::kLanes / 2; step; step /= 2)
          s[n] += __shfl_xor_sync(kAllLanes, s[n], step);
        if (at >= seen)
          s[n] = -INFINITY;
        else
          s[n] *= k.factor(row[n]);
        if (at < seen && p.mask) s[n] = added_score(p, h, h.first_query, at, s[n]);
        top = fmaxf(top, s[n]);
      }
      const float shift = softmax_shift(top), decay = exp2f(max - shift);
      max = top;
      sum *= decay;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) o[i] *= decay;
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        if (j + n * kStreams + stream >= seen) continue;  // be they NaN
        const float weight = exp2f(s[n] - shift), scaled = weight * v.factor(row[n]);
        sum += weight;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) o[i] = fmaf(scaled, to_accumulate(value[n][i]), o[i]);
      }
    }
    __syncthreads();  // the parts of the chunk before are used
#pragma unroll
    for (int i = 0; i < kOwn; ++i) parts[stream][Shape::dim(lane, i)] = o[i];
    if (lane == 0) maxima[stream] = max, sums[stream] = sum;
    __syncthreads();
    float most = maxima[0], chunk_sum = 0.f, chunk[kStreamOwn] = {};
    for (int i = 1; i < kStreams; ++i) most = fmaxf(most, maxima[i]);
    for (int i = 0; i < kStreams; ++i) {
      const float factor = exp2f(maxima[i] - softmax_shift(most));
      chunk_sum = fmaf(sums[i], factor, chunk_sum);
#pragma unroll
      for (int n = 0; n < kStreamOwn; ++n) {
        const auto d = static_cast<int>(threadIdx.x) + n * kAttentionThreads;
        if (d < D) chunk[n] = fmaf(parts[i][d], factor, chunk[n]);
      }
    }
    if (part) {
      for (int n = 0; n < kStreamOwn; ++n) {
        const auto d = static_cast<int>(threadIdx.x) + n * kAttentionThreads;
        if (d < p.dim) part[2 + d] = chunk[n];
      }
      if (threadIdx.x == 0) part[0] = most, part[1] = chunk_sum;
      return;
    }
    total.add(most, chunk_sum);
    for (int n = 0; n < kStreamOwn; ++n) x[n] = total.value(x[n], chunk[n]);
  }
  if (!part) finish_stream(p, h, total, x);
}

// What the blocks of a query's chunks left.
__device__ inline void merge_stream(const AttentionParams& p, const AttentionHead& h,
                                    int64_t work) {
  const int64_t chunks = attention_chunks(attention_seen(p, h, h.first_query));
  StreamSums total;
  float x[kStreamOwn] = {};
#pragma unroll 4
  for (int64_t i = 0; i < chunks; ++i) {
    const float* const part = stream_part(p, work, i);
    total.add(part[0], part[1]);
#pragma unroll
    for (int n = 0; n < kStreamOwn; ++n) {
      const auto d = static_cast<int>(threadIdx.x) + n * kAttentionThreads;
      if (d < p.dim) x[n] = total.value(x[n], part[2 + d]);
    }
  }
  finish_stream(p, h, total, x);
}

// Calls f.template operator()<KV, D>() for the type of the keys and the padded dimension.
template <class F>
void with_stream_attention(const AttentionParams& p, F&& f) {
  with_padded_dim(p.dim, [&]<int D>() {
    if (p.kv_dtype == DType::i8)
      f.template operator()<int8_t, D>();
    else
      with_cuda_type(p.kv_dtype, [&]<class KV>() {
        if constexpr (!std::is_same_v<KV, double>) f.template operator()<KV, D>();
      });
  });
}

}  // namespace pixleap
