#include "cuda/emulate/wgmma.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace pixleap::emulate {
namespace {

constexpr unsigned kRows = 64, kDepth = 16, kThreads = 128;

// One instruction of a warpgroup.
struct Product {
  ProductKind kind;
  uint64_t a, b;
  bool accumulate;
  uint32_t words[kThreads][4];           // a in registers
  std::vector<uint16_t> a_bits, b_bits;  // as read: (64 or N) x 16
  std::vector<float> a_values, b_values;
  unsigned came = 0;
  bool read = false;
};

// What one thread has of it.
struct Part {
  std::shared_ptr<Product> product;
  float* d;
  std::vector<float> start;  // what d held, where no product before it is under way
  const uint32_t* words;
  int64_t group;
};

struct ThreadProducts {
  std::vector<Part> parts;
  int64_t issued = 0, commits = 0;
  bool fenced = false;
};

struct Warpgroup {
  std::deque<std::shared_ptr<Product>> products;
  int64_t first = 0;  // number of products[0]
};

std::vector<ThreadProducts> threads;
std::vector<Warpgroup> warpgroups;

unsigned thread_number() { return current->warp * 32 + current->lane; }

uint32_t field(uint64_t descriptor, unsigned bit) {
  return static_cast<uint32_t>(descriptor >> bit & 0x3fffu) << 4;
}

// The elements that a descriptor names: extent x 16, by the table of cuda/wgmma.h.
std::vector<uint16_t> read_operand(uint64_t descriptor, unsigned extent, bool transposed,
                                   Where where) {
  const uint32_t start = field(descriptor, 0), leading = field(descriptor, 16);
  const uint32_t stride = field(descriptor, 32);
  const auto mode = static_cast<uint32_t>(descriptor >> 62);
  if (descriptor & 0x3fffc000c000c000u) fail("wgmma: a descriptor's unused bits are set", where);
  const uint32_t width = mode ? 256u >> mode : 16;  // 128, 64, 32
  const uint32_t mask = mode ? width / 16 - 1 : 0;  // chunks of 16 bytes that change places
  if (mode && start % (8 * width) >= width)
    fail("wgmma: an operand that is not aligned to 8 rows of " + std::to_string(width) + " bytes",
         where);
  std::vector<uint16_t> bits(extent * kDepth);
  for (uint32_t i = 0; i < extent; ++i)
    for (uint32_t k = 0; k < kDepth; ++k) {
      uint32_t at = start;
      if (mode && !transposed)
        at += i / 8 * stride + i % 8 * width + 2 * k;
      else if (mode)
        at += i / (width / 2) * leading + k / 8 * stride + k % 8 * width + i % (width / 2) * 2;
      else
        at += i / 8 * stride + k / 8 * leading +
              (transposed ? k % 8 * 16 + i % 8 * 2 : i % 8 * 16 + k % 8 * 2);
      at ^= (at >> 7 & mask) << 4;
      const unsigned char* place = async_view(at, 2);
      if (!place) fail("wgmma: an operand outside of dynamic shared memory", where);
      std::memcpy(&bits[i * kDepth + k], place, 2);
    }
  return bits;
}

float value_of(uint16_t bits, bool bf16) {
  if (bf16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}

std::vector<float> values_of(const std::vector<uint16_t>& bits, bool bf16) {
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) values[i] = value_of(bits[i], bf16);
  return values;
}

void read_operands(Product& p, Where where) {
  p.read = true;
  p.b_bits = read_operand(p.b, p.kind.columns, p.kind.transposed_b, where);
  if (p.kind.a_in_registers) {
    p.a_bits.resize(kRows * kDepth);
    for (unsigned thread = 0; thread < kThreads; ++thread)
      for (unsigned word = 0; word < 4; ++word)
        for (unsigned half = 0; half < 2; ++half) {
          const unsigned row = thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8;
          const unsigned k = thread % 4 * 2 + word / 2 * 8 + half;
          p.a_bits[row * kDepth + k] = static_cast<uint16_t>(p.words[thread][word] >> 16 * half);
        }
  } else {
    p.a_bits = read_operand(p.a, kRows, false, where);
  }
  p.a_values = values_of(p.a_bits, p.kind.bf16);
  p.b_values = values_of(p.b_bits, p.kind.bf16);
}

void check_unchanged(const Product& p, Where where) {
  if (read_operand(p.b, p.kind.columns, p.kind.transposed_b, where) != p.b_bits ||
      (!p.kind.a_in_registers && read_operand(p.a, kRows, false, where) != p.a_bits))
    fail("wgmma: shared memory changed between a product and the wait for it", where);
}

unsigned size_of_d(const Product& p) { return p.kind.columns / 2; }

void add_product(const Product& p, float* d) {
  const unsigned in_group = thread_number() % kThreads;
  for (unsigned i = 0; i < size_of_d(p); ++i) {
    const unsigned row = in_group / 32 * 16 + in_group % 32 / 4 + i % 4 / 2 * 8;
    const unsigned column = i / 4 * 8 + in_group % 4 * 2 + i % 2;
    const float* a = &p.a_values[row * kDepth];
    const float* b = &p.b_values[column * kDepth];
    float sum = p.accumulate ? d[i] : 0.f;
    for (unsigned k = 0; k < kDepth; ++k) sum = std::fma(a[k], b[k], sum);
    d[i] = sum;
  }
}

}  // namespace

void reset_products(unsigned count) {
  threads.assign(count, {});
  warpgroups.assign(count / kThreads, {});
}

void fence_products() { threads[thread_number()].fenced = true; }
void commit_products() { ++threads[thread_number()].commits; }

void issue_product(const ProductKind& kind, float* d, const uint32_t* a_words, uint64_t a,
                   uint64_t b, bool accumulate, Where where) {
  const unsigned number = thread_number(), in_group = number % kThreads;
  if (!threads[number].fenced)
    fail("wgmma: no wgmma_fence since registers could be touched", where);
  if (number / kThreads >= warpgroups.size())
    fail("wgmma: a warpgroup of fewer than 128 threads", where);
  Warpgroup& group = warpgroups[number / kThreads];
  const auto index = static_cast<size_t>(threads[number].issued++ - group.first);
  if (index == group.products.size()) {
    group.products.push_back(std::make_shared<Product>());
    Product& made = *group.products.back();
    made.kind = kind, made.a = a, made.b = b, made.accumulate = accumulate;
  }
  const std::shared_ptr<Product> product = group.products[index];
  if (product->a != a || product->b != b || product->accumulate != accumulate)
    fail("wgmma: threads of a warpgroup that give different operands", where);
  if (a_words) std::memcpy(product->words[in_group], a_words, sizeof product->words[0]);
  if (++product->came == kThreads) {
    group.products.pop_front();  // the first, as all threads issue in one order
    ++group.first;
  }
  meet_warpgroup("wgmma", where);
  if (!product->read) read_operands(*product, where);
  ThreadProducts& mine = threads[number];
  Part part{product, d, {}, a_words, mine.commits};
  bool under_way = false;
  for (const Part& other : mine.parts) under_way = under_way || other.d == d;
  if (!under_way) part.start.assign(d, d + size_of_d(*product));
  mine.parts.push_back(std::move(part));
  std::memset(d, 0xff, size_of_d(*product) * sizeof(float));
}

void wait_products(int newest, Where where) {
  ThreadProducts& mine = threads[thread_number()];
  mine.fenced = false;
  while (!mine.parts.empty() && mine.parts.front().group < mine.commits - newest) {
    const Part part = std::move(mine.parts.front());
    mine.parts.erase(mine.parts.begin());
    const Product& product = *part.product;
    if (current->lane == 0) check_unchanged(product, where);
    if (part.words && std::memcmp(part.words, product.words[thread_number() % kThreads],
                                  sizeof product.words[0]) != 0)
      fail("wgmma: registers of a changed between a product and the wait for it", where);
    std::vector<float> sums = part.start;
    add_product(product, sums.data());
    Part* next = nullptr;
    for (Part& other : mine.parts)
      if (!next && other.d == part.d) next = &other;
    if (next)
      next->start = std::move(sums);
    else
      std::memcpy(part.d, sums.data(), sums.size() * sizeof(float));
  }
}

}  // namespace pixleap::emulate
