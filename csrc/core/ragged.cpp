#include "core/ragged.h"

#include <numeric>

namespace pixleap {

void check_sequence(const Check& check, bool ok, const char* name, const std::string& expected,
                    int64_t got, int64_t i) {
  if (!ok)
    check.value(false, name, expected, std::to_string(got) + " for sequence " + std::to_string(i));
}

std::vector<int64_t> host_integers(const Check& check, const View& v, int64_t count) {
  check.dtype(v, {DType::i64});
  check.on_cpu(v);
  check.shape(v, {count});
  std::vector<int64_t> values(static_cast<size_t>(v.size(0)));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = v.as<const int64_t>()[static_cast<int64_t>(i) * v.stride(0)];
  return values;
}

std::vector<int64_t> sequence_offsets(const Check& check, const View& offsets, int64_t rows) {
  const std::vector<int64_t> values = host_integers(check, offsets, -1);
  check.value(!values.empty(), offsets.name, "at least one number", "none");
  check.value(values.front() == 0, offsets.name, "0 first", values.front());
  for (size_t i = 1; i < values.size(); ++i)
    if (values[i] < values[i - 1])
      check.value(false, offsets.name, "numbers that do not descend",
                  std::to_string(values[i]) + " after " + std::to_string(values[i - 1]));
  check.value(values.back() == rows, offsets.name,
              "the number of rows " + std::to_string(rows) + " last", values.back());
  return values;
}

std::vector<int64_t> sequence_slots(const Check& check, const Optional& slots, int64_t n,
                                    const View& caches) {
  const int64_t count = caches.size(0);
  if (!slots.defined) {
    check.value(n <= count, caches.name,
                "at least " + std::to_string(n) + " slots, one for each sequence", count);
    std::vector<int64_t> values(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), int64_t{0});
    return values;
  }
  const std::vector<int64_t> values = host_integers(check, slots, n);
  for (size_t i = 0; i < values.size(); ++i)
    check_sequence(check, values[i] >= 0 && values[i] < count, slots.name,
                   "numbers from 0 to " + std::to_string(count - 1), values[i],
                   static_cast<int64_t>(i));
  return values;
}

}  // namespace pixleap
