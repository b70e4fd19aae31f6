// Every message a front can raise is written here: op, argument, what was expected, what came.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "core/view.h"

namespace pixleap {

struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct BackendError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string shape_string(const View& v);

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  void dtype(const View& v, std::initializer_list<DType> allowed) const;
  void same_dtype(const View& v, const View& like) const;
  void same_device(const View& v, const View& like) const;
  void on_cpu(const View& v) const;
  void ndim(const View& v, int expected) const;
  // -1 in `expected` accepts any extent.
  void shape(const View& v, std::initializer_list<int64_t> expected) const;
  void same_shape(const View& v, const View& like) const;
  // float64, contiguous, with the shape of `like` but for its last `dropped` dimensions.
  void batch_output(const View& out, const View& like, int dropped) const;
  void contiguous(const View& v) const;
  void unit_last_stride(const View& v) const;
  // Writable and no two elements at one address (an expanded view would be a data race).
  void output(const View& v) const;
  // Memory of `out` and `in` must be disjoint; `identical_ok` allows exact in-place use.
  void no_overlap(const View& out, const View& in, bool identical_ok) const;
  // fail if !ok: "<op>: argument '<name>' expected <expected>, got <got>".
  void value(bool ok, const char* name, const std::string& expected, const std::string& got) const;
  void value(bool ok, const char* name, const std::string& expected, double got) const;
  void value(bool ok, const char* name, const std::string& expected, int64_t got) const;

  const char* op() const { return op_; }

 private:
  [[noreturn]] void fail_value(const char* name, const std::string& expected,
                               const std::string& got) const;
  [[noreturn]] void fail_type(const char* name, const std::string& expected,
                              const std::string& got) const;
  const char* op_;
};

}  // namespace pixleap
