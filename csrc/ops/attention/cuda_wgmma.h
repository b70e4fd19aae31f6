// A block of queries by Hopper's warpgroup products (sm_90a): bfloat16 or float16 keys, sums and
// softmax in float32. While a warpgroup makes weights of one tile of scores, the tensor cores sum
// the values of the last one, and the next keys and values come by cp.async.
#pragma once

#include "cuda/wgmma.h"
#include "ops/attention/cuda_tile.h"

namespace pixleap {

// Fewer queries fill no second warpgroup: 64 are a block of cuda_mma.h.
constexpr int64_t kAttentionWgmmaFrom = 65;

// Two warpgroups have 64 queries each and all keys. D: the dimension, padded with zeros.
template <class T, int D>
struct WgmmaAttention {
  static constexpr int kGroups = 2, kThreads = kGroups * kWarpgroup, kQueries = kGroups * 64;
  static constexpr int kTile = D == 64 ? 64 : 128;  // keys
  static constexpr int kBlocks = D == 64 ? 2 : 1;   // of a multiprocessor: 128 or 255 registers
  static constexpr int kTileElements = kTile * D;
  // Queries, two tiles of keys and two of values, aligned, how many keys the queries see, and
  // what the block works on: read again where it is needed, it takes no registers.
  static constexpr size_t kBytes = 1024 + (size_t{kQueries} * D + 4 * kTileElements) * sizeof(T) +
                                   kQueries * sizeof(int64_t) + sizeof(AttentionHead);
  using QueryTile = ColumnTile<kQueries, D>;
  using KeyTile = ColumnTile<kTile, D>;
};

#if defined(PIXLEAP_WGMMA)

// Values that some of the block's queries see and others do not must not reach the latter, whose
// weight of 0 a NaN would survive: here those that are not finite are added to the rows that see
// them (`limit` keys of the tile), one by one, and become zeros in the tile. `own`: place for a
// warp's weights, (16, keys).
template <class Tile, class T, int Steps>
__device__ inline void add_not_finite(const uint32_t (&weights)[Steps][4], const int (&limit)[2],
                                      T* own, T* values, float (&o)[Tile::kDim / 8][4]) {
  constexpr int kKeys = Tile::kRows, kChunks = Tile::kDim / 8;
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  share_weights(weights, own);
#pragma unroll 1
  for (int key = 0; key < kKeys; ++key)
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
      uint32_t pair;
      memcpy(&pair, values + Tile::at(key, n) + 2 * t, sizeof pair);
      if (!not_finite<T>(pair) && !not_finite<T>(pair >> 16)) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        T value;
        const auto bits = static_cast<uint16_t>(pair >> 16 * e);
        memcpy(&value, &bits, sizeof value);
        if (!not_finite<T>(bits)) continue;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (key < limit[r])
            o[n][2 * r + e] = fmaf(to_accumulate(own[(g + 8 * r) * kKeys + key]),
                                   to_accumulate(value), o[n][2 * r + e]);
      }
    }
  __syncthreads();  // all have seen the values
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kChunks;
       i += static_cast<int>(blockDim.x)) {
    uint4* const chunk = reinterpret_cast<uint4*>(values + Tile::at(i / kChunks, i % kChunks));
    uint32_t words[4];
    memcpy(words, chunk, sizeof words);
#pragma unroll
    for (uint32_t& word : words) {
      if (not_finite<T>(word)) word &= 0xffff0000u;
      if (not_finite<T>(word >> 16)) word &= 0xffffu;
    }
    memcpy(chunk, words, sizeof words);
  }
  fence_proxy_async();
  __syncthreads();
}

// load_rows with less arithmetic where rows lie at one distance.
template <class Tile, int Threads, class T>
__device__ inline void copy_rows(const AttentionParams& p, const AttentionHead& h,
                                 const HeadRows<const T>& rows, int first, int limit, T* tile) {
  constexpr int kChunks = Tile::kDim / 8, kStep = Threads / kChunks;
  static_assert(Threads % kChunks == 0 && Tile::kRows % kStep == 0);
  if (!rows.vectors || p.window.rows)
    return load_rows<Tile, Threads>(p, h, rows, first, limit, tile);
  const int row = static_cast<int>(threadIdx.x) / kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int end = chunk * 8 < p.dim ? limit - first : 0;
  const T* from = rows.data + (first + row) * rows.stride + chunk * 8;
#pragma unroll
  for (int r = 0; r < Tile::kRows; r += kStep) {
    cp_async_16(tile + Tile::at(row + r, chunk), from, row + r < end);
    from += kStep * rows.stride;
  }
}

// Ends no wait before the weights that `softmax` counts are made: the compiler, which sees no cost
// in a wait, takes it first. Sums of weights are not negative, so the branch is never taken.
__device__ inline void stay_before(const SoftmaxRows& softmax) {
  if (__any_sync(kAllLanes, softmax.sum[0] + softmax.sum[1] < 0.f)) __trap();
}

// work(): what the block works on.
template <class T, int D, class Work>
__device__ void attend_wgmma(const AttentionParams& p, Work&& work) {
  using Shape = WgmmaAttention<T, D>;
  using KeyTile = typename Shape::KeyTile;
  using QueryTile = typename Shape::QueryTile;
  constexpr int kTile = Shape::kTile, kQueries = Shape::kQueries, kThreads = Shape::kThreads;
  constexpr auto kSwizzle = WgmmaSwizzle::bytes128;
  T* const q_tile = reinterpret_cast<T*>(align_shared<1024>(dynamic_shared()));
  // In this order the keys of a tile and the values of the one before it lie side by side: both
  // are free while the tile's values are summed.
  const auto k_tile = [&](int j) { return q_tile + kQueries * D + (j & 1) * 2 * kTile * D; };
  const auto v_tile = [&](int j) { return q_tile + kQueries * D + (3 - (j & 1) * 2) * kTile * D; };
  int64_t* const seen = reinterpret_cast<int64_t*>(q_tile + kQueries * D + 4 * kTile * D);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4, first_row = warp * 16;
  if (threadIdx.x == 0) *reinterpret_cast<AttentionHead*>(seen + kQueries) = work();
  __syncthreads();
  const AttentionHead& h = *reinterpret_cast<const AttentionHead*>(seen + kQueries);

  load_rows<QueryTile, kThreads>(
      p, h, HeadRows<const T>{static_cast<const T*>(p.q) + h.q, p.q_strides, p.dim}, h.first_query,
      h.queries, q_tile);
  for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kThreads)
    seen[r] = attention_seen(p, h, h.first_query + r);
  __syncthreads();
  const auto row_count = [&] { return keys_left(h.queries, h.first_query, kQueries); };
  const int rows = row_count();
  const SeenKeys block = seen_keys(seen, rows, lane);
  const int least = static_cast<int>(min(block.least, block.most));
  const int most = static_cast<int>(block.most);
  // From which tile on some keys are hidden from queries of this warp, or are not there.
  const SeenKeys mine = seen_keys(seen + first_row, min(rows - first_row, 16), lane);
  const int warp_whole = static_cast<int>(min(mine.least, block.most)) / kTile;
  const auto limits = [&](int j, int(&limit)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) limit[r] = keys_left(seen[first_row + g + 8 * r], j * kTile, kTile);
  };
  const float factor = p.scale * kLog2OfE;
  const auto load_keys = [&](int j) {
    const HeadRows<const T> k{static_cast<const T*>(p.k) + h.k, p.k_strides, p.dim};
    if (j * kTile < most) copy_rows<KeyTile, kThreads>(p, h, k, j * kTile, most, k_tile(j));
    cp_async_commit();
  };
  const auto load_values = [&](int j) {
    const HeadRows<const T> v{static_cast<const T*>(p.v) + h.v, p.v_strides, p.dim};
    if (j * kTile < most) copy_rows<KeyTile, kThreads>(p, h, v, j * kTile, most, v_tile(j));
    cp_async_commit();
  };
  load_keys(0);

  float o[D / 8][4] = {}, s[kTile / 8][4] = {};
  uint32_t weights[kTile / 16][4] = {};
  SoftmaxRows softmax;
  // Columns of 64 follow each other; within one, 16 of k are 32 bytes.
  const auto issue_scores = [&](int j) {
    const uint64_t a = wgmma_descriptor(q_tile + warp / 4 * 64 * 64, 16, 1024, kSwizzle);
    const uint64_t b = wgmma_descriptor(k_tile(j), 16, 1024, kSwizzle);
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
      wgmma_ss<T, false>(s, wgmma_advance(a, i / 4 * kQueries * 128 + i % 4 * 32),
                         wgmma_advance(b, i / 4 * kTile * 128 + i % 4 * 32), i > 0);
    wgmma_commit();
  };
  const auto issue_values = [&](int j) {
    const uint64_t b = wgmma_descriptor(v_tile(j), kTile * 128, 1024, kSwizzle);
#pragma unroll
    for (int n = 0; n < kTile / 16; ++n)
      wgmma_rs<T, true>(o, weights[n], wgmma_advance(b, n * 2048), true);
    wgmma_commit();
  };
  const auto make_weights = [&](int j, float(&decay)[2]) {
    int limit[2] = {};
    if (j >= warp_whole) limits(j, limit);
    softmax_tile<false, false>(p, h, s, factor, j >= warp_whole, limit, 0, 0, softmax, decay);
  };
  // The values of tile j and the keys of the next one are there, and what came before is used.
  const auto arrive = [&](int j) {
    cp_async_wait<0>();
    fence_proxy_async();
    __syncthreads();
    if (least == most || (j + 1) * kTile <= least) return;
    if (!__syncthreads_or(any_not_finite<KeyTile, kThreads>(v_tile(j), least - j * kTile))) return;
    int limit[2];
    limits(j, limit);
    add_not_finite<KeyTile>(weights, limit, k_tile(j) + warp * 16 * kTile, v_tile(j), o);
  };

  const auto hold = [&] {
    wgmma_hold(s);
    wgmma_hold(o);
    wgmma_hold(weights);
  };

  cp_async_wait<0>();
  fence_proxy_async();
  __syncthreads();
  if (most > 0) {
    float decay[2];
    wgmma_hold(s);
    wgmma_fence();
    issue_scores(0);
    load_keys(1);
    load_values(0);
    wgmma_wait<0>();
    wgmma_hold(s);
    make_weights(0, decay);
    pack_weights<T>(s, weights);
    int j = 0;
    for (; (j + 1) * kTile < most; ++j) {
      arrive(j);
      hold();
      wgmma_fence();
      issue_scores(j + 1);
      issue_values(j);
      load_keys(j + 2);
      load_values(j + 1);
      wgmma_wait<1>();
      wgmma_hold(s);
      make_weights(j + 1, decay);
      stay_before(softmax);  // made while the values are summed, not after
      wgmma_wait<0>();
      wgmma_hold(o);
      scale_rows(o, decay);
      pack_weights<T>(s, weights);
    }
    arrive(j);
    hold();
    wgmma_fence();
    issue_values(j);
    wgmma_wait<0>();
    wgmma_hold(o);
  }
  softmax.add_lanes();
  // The scores are made: the queries' places take the output.
  store_rows<QueryTile>(p, h, softmax, o, first_row, row_count(),
                        HeadRows<T>{static_cast<T*>(p.out) + h.out, p.out_strides, p.dim}, q_tile);
}

#endif

// Whether a head with so many queries takes it, of those that attention_by_mma is true for. Mask
// arrays and neighbourhoods stay there: asking for them takes longer than the products, and room in
// registers.
inline bool attention_by_wgmma(const AttentionParams& p, int64_t queries, const Device& device) {
  return queries >= kAttentionWgmmaFrom && p.dim <= 128 && !p.mask && !p.window.near_rows &&
         p.keys <= INT_MAX && runs_wgmma(device);
}

// Calls f.template operator()<T, D>() for these parameters.
template <class F>
void with_wgmma_attention(const AttentionParams& p, F&& f) {
  const auto with_type = [&]<class T>() {
    if (p.dim <= 64)
      f.template operator()<T, 64>();
    else
      f.template operator()<T, 128>();
  };
  if (p.dtype == DType::bf16)
    with_type.template operator()<__nv_bfloat16>();
  else
    with_type.template operator()<__half>();
}

}  // namespace pixleap
