// From a front `void op(const Out&, const View&, double, ...)` to a Python fast call: the argument
// types of the front decide how each Python argument is converted, and are also reported as the
// op's signature, from which python/pixleap/_torch.py writes the torch schema.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bind/tensor_arg.h"
#include "core/check.h"

namespace pixleap::bind {

// Argument<T>: kind(), and a constructor (scope, object, name) with get().
template <class T>
struct Argument;

template <class V>
struct ViewArgument {
  V value;
  ViewArgument(CallScope& scope, PyObject* o, const char* name) {
    if (std::is_same_v<V, Optional> && o == Py_None) return;
    static_cast<View&>(value) = scope.view(o, name);
  }
  const V& get() const { return value; }
};
template <>
struct Argument<const View&> : ViewArgument<View> {
  using ViewArgument::ViewArgument;
  static constexpr const char* kind = "view";
};
template <>
struct Argument<const Out&> : ViewArgument<Out> {
  using ViewArgument::ViewArgument;
  static constexpr const char* kind = "out";
};
template <>
struct Argument<const Optional&> : ViewArgument<Optional> {
  using ViewArgument::ViewArgument;
  static constexpr const char* kind = "optional";
};

template <class V>
struct ListArgument {
  std::vector<V> values;
  ListArgument(CallScope& scope, PyObject* o, const char* name) {
    if (!PyList_Check(o) && !PyTuple_Check(o))
      throw TypeError(std::string(scope.op()) + ": argument '" + name +
                      "' expected a list of arrays, got " + Py_TYPE(o)->tp_name);
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
    if (n > 32)
      throw ValueError(std::string(scope.op()) + ": argument '" + name +
                       "' expected at most 32 arrays, got " + std::to_string(n));
    values.resize(static_cast<size_t>(n));
    for (Py_ssize_t i = 0; i < n; ++i) {
      PyObject* item = PySequence_Fast_GET_ITEM(o, i);
      if (std::is_same_v<V, Optional> && item == Py_None) continue;
      static_cast<View&>(values[static_cast<size_t>(i)]) = scope.view(item, name);
    }
  }
  std::span<const V> get() const { return values; }
};
template <>
struct Argument<std::span<const View>> : ListArgument<View> {
  using ListArgument::ListArgument;
  static constexpr const char* kind = "views";
};
template <>
struct Argument<std::span<const Out>> : ListArgument<Out> {
  using ListArgument::ListArgument;
  static constexpr const char* kind = "outs";
};
template <>
struct Argument<std::span<const Optional>> : ListArgument<Optional> {
  using ListArgument::ListArgument;
  static constexpr const char* kind = "optionals";
};

// A list of numbers on the host: `floats` or `ints`.
template <class T>
struct Argument<std::span<const T>> {
  static constexpr const char* kind = std::is_integral_v<T> ? "ints" : "floats";
  std::vector<T> values;
  Argument(CallScope& scope, PyObject* o, const char* name);
  std::span<const T> get() const { return values; }
};

[[noreturn]] inline void reject_scalar(CallScope& scope, const char* name, const char* expected,
                                       PyObject* o) {
  const bool overflow = PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError);
  PyErr_Clear();
  const std::string text = std::string(scope.op()) + ": argument '" + name + "' expected " +
                           expected + ", got " +
                           (overflow ? "a number out of range" : Py_TYPE(o)->tp_name);
  if (overflow) throw ValueError(text);
  throw TypeError(text);
}

template <>
struct Argument<double> {
  static constexpr const char* kind = "float";
  double value;
  Argument(CallScope& scope, PyObject* o, const char* name) : value(PyFloat_AsDouble(o)) {
    if (value == -1.0 && PyErr_Occurred()) reject_scalar(scope, name, "a number", o);
  }
  double get() const { return value; }
};
template <>
struct Argument<int64_t> {
  static constexpr const char* kind = "int";
  int64_t value;
  Argument(CallScope& scope, PyObject* o, const char* name) : value(PyLong_AsLongLong(o)) {
    if (value == -1 && PyErr_Occurred()) reject_scalar(scope, name, "an integer", o);
  }
  int64_t get() const { return value; }
};
template <class T>
Argument<std::span<const T>>::Argument(CallScope& scope, PyObject* o, const char* name) {
  if (!PyList_Check(o) && !PyTuple_Check(o)) reject_scalar(scope, name, "a list of numbers", o);
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(o);
  values.reserve(static_cast<size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i)
    values.push_back(Argument<T>(scope, PySequence_Fast_GET_ITEM(o, i), name).get());
}
template <>
struct Argument<bool> {
  static constexpr const char* kind = "bool";
  bool value;
  Argument(CallScope& scope, PyObject* o, const char* name) : value(o == Py_True) {
    if (!PyBool_Check(o)) reject_scalar(scope, name, "True or False", o);
  }
  bool get() const { return value; }
};
template <>
struct Argument<std::string_view> {
  static constexpr const char* kind = "str";
  std::string_view value;
  Argument(CallScope& scope, PyObject* o, const char* name) {
    Py_ssize_t n = 0;
    const char* text = PyUnicode_Check(o) ? PyUnicode_AsUTF8AndSize(o, &n) : nullptr;
    if (!text) reject_scalar(scope, name, "a string", o);
    value = {text, static_cast<size_t>(n)};
  }
  std::string_view get() const { return value; }
};

PyObject* call_through_torch(const char* op, PyObject* const* args, Py_ssize_t n);
PyObject* raise_current_exception();  // translates the C++ exception in flight

template <auto Front>
struct Entry;

template <class... A, void (*Front)(A...)>
struct Entry<Front> {
  static inline const char* name = nullptr;
  static inline std::array<std::string, sizeof...(A)> arguments;

  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t n) {
    try {
      if (n != static_cast<Py_ssize_t>(sizeof...(A)))
        throw TypeError(std::string(name) + ": expected " + std::to_string(sizeof...(A)) +
                        " arguments, got " + std::to_string(n));
      return invoke(args, std::index_sequence_for<A...>{});
    } catch (const NeedsTorchDispatch&) {
      return call_through_torch(name, args, n);
    } catch (...) {
      return raise_current_exception();
    }
  }

  static std::vector<std::pair<std::string, std::string>> signature() {
    std::vector<std::pair<std::string, std::string>> s;
    const char* kinds[] = {Argument<A>::kind...};
    for (size_t i = 0; i < sizeof...(A); ++i) s.emplace_back(arguments[i], kinds[i]);
    return s;
  }

 private:
  template <size_t... I>
  static PyObject* invoke(PyObject* const* args, std::index_sequence<I...>) {
    CallScope scope(name);
    // Braces: left to right.
    const std::tuple<Argument<A>...> converted{
        Argument<A>(scope, args[I], arguments[I].c_str())...};
    {
      pybind11::gil_scoped_release release;
      Front(std::get<I>(converted).get()...);
    }
    Py_RETURN_NONE;
  }
};

}  // namespace pixleap::bind
