// From a Python object to a View: torch tensors by the DLPack C exchange API, NumPy arrays by their
// struct, anything else by __dlpack__.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack_abi.h"
#include "core/view.h"

namespace pixleap::bind {

// Thrown when a tensor must go through torch's dispatcher: FakeTensor, meta tensor, subclass.
struct NeedsTorchDispatch {};

// Keeps what a __dlpack__ export handed over alive for the length of one call.
class CallScope {
 public:
  explicit CallScope(const char* op) : op_(op) {}
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  ~CallScope();

  View view(PyObject* object, const char* argument);
  const char* op() const { return op_; }

 private:
  View from_torch(PyObject* object, const char* argument, const dlpack::ExchangeApi* api);
  View from_numpy(PyObject* object, const char* argument);
  View from_dlpack(PyObject* object, const char* argument);
  View from_tensor(const dlpack::Tensor& t, const char* argument);
  [[noreturn]] void reject(const char* argument, const std::string& expected,
                           const std::string& got) const;

  static constexpr int kMaxExports = 48;
  const char* op_;
  int exports_ = 0;
  PyObject* capsules_[kMaxExports];
};

}  // namespace pixleap::bind
