#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>

#include "bind/entry.h"
#include "core/cpu_features.h"
#include "core/parallel.h"
#if defined(PIXLEAP_CUDA_EMULATE)
#include "cuda/emulate/engine.h"
#endif
#include "ops_list.h"  // made by the build: includes every ops/<op>/<op>.h

namespace py = pybind11;

namespace pixleap::bind {

PyObject* call_through_torch(const char* op, PyObject* const* args, Py_ssize_t n) {
  try {
    py::tuple arguments(static_cast<size_t>(n));
    for (Py_ssize_t i = 0; i < n; ++i)
      arguments[static_cast<size_t>(i)] = py::reinterpret_borrow<py::object>(args[i]);
    return py::module_::import("pixleap._torch").attr("dispatch")(op, arguments).release().ptr();
  } catch (py::error_already_set& e) {
    e.restore();
    return nullptr;
  }
}

PyObject* raise_current_exception() {
  try {
    throw;
  } catch (const ValueError& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const TypeError& e) {
    PyErr_SetString(PyExc_TypeError, e.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

namespace {

// What a call costs before any work: four arrays in, nothing done. Measured by bench/run.py.
void noop(const View&, const View&, const View&, const View&) {}

template <auto Front>
void add_entry(py::module_& m, py::dict& signatures, const char* name, const char* arguments) {
  Entry<Front>::name = name;
  std::istringstream words(arguments);
  for (auto& word : Entry<Front>::arguments)
    if (!(words >> word)) throw std::logic_error(std::string(name) + ": ops.def names too few");
  std::string extra;
  if (words >> extra) throw std::logic_error(std::string(name) + ": ops.def names too many");
  static PyMethodDef definition{
      name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Entry<Front>::call)),
      METH_FASTCALL, nullptr};
  m.add_object(name, py::reinterpret_steal<py::object>(
                         PyCFunction_NewEx(&definition, nullptr, m.attr("__name__").ptr())));
  signatures[name] = Entry<Front>::signature();
}

Isa isa_from_name(const std::string& name) {
  const auto isa = parse_isa(name);
  if (!isa || !isa_available(*isa)) {
    std::string names;
    for (int i = 0; i <= static_cast<int>(Isa::amx); ++i)
      if (isa_available(static_cast<Isa>(i)))
        names += (names.empty() ? "" : ", ") + std::string(isa_name(static_cast<Isa>(i)));
    throw py::value_error("set_isa: argument 'name' expected one of " + names + ", got " + name);
  }
  return *isa;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native core of pixleap. Use pixleap.ops.";
  py::dict signatures;
#define PIXLEAP_OP(name, arguments) add_entry<&pixleap::name>(m, signatures, #name, arguments);
#include "ops.def"
#undef PIXLEAP_OP
  m.attr("signatures") = signatures;
  py::dict unlisted;
  add_entry<&noop>(m, unlisted, "noop", "a b c d");
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", [](int n) {
    if (n < 1 || n > 1024)
      throw py::value_error("set_num_threads: argument 'n' expected 1 to 1024, got " +
                            std::to_string(n));
    set_num_threads(n);
  });
  m.def("isa", [] { return std::string(isa_name(active_isa())); });
  m.def("set_isa", [](const std::string& name) { set_active_isa(isa_from_name(name)); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(Isa::amx); ++i)
      if (isa_available(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
    return names;
  });
#if defined(PIXLEAP_CUDA_EMULATE)
  m.def(
      "emulate_cuda",
      [](const std::string& order, uint64_t seed, int capability) {
        using emulate::Order;
        emulate::set_capability(capability);
        const std::pair<const char*, Order> names[] = {{"off", Order::off},
                                                       {"forward", Order::forward},
                                                       {"reverse", Order::reverse},
                                                       {"shuffle", Order::shuffle}};
        for (const auto& [name, value] : names)
          if (order == name) return emulate::set_order(value, seed);
        throw py::value_error(
            "emulate_cuda: argument 'order' expected off, forward, reverse or shuffle, got " +
            order);
      },
      py::arg("order"), py::arg("seed") = 0, py::arg("capability") = 9,
      "CPU arrays go to the CUDA kernels, run on the CPU; order: which thread goes on; capability: "
      "the device's, major.");
  m.def("emulated_launches", &emulate::launches);
#endif
#if defined(PIXLEAP_CUDA)
  m.attr("built_with_cuda") = true;
#else
  m.attr("built_with_cuda") = false;
#endif
}

}  // namespace pixleap::bind
