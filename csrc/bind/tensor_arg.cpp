#include "bind/tensor_arg.h"

#include <pybind11/numpy.h>

#include "core/check.h"

namespace py = pybind11;

namespace pixleap::bind {
namespace {

enum class Kind { unknown, torch, torch_subclass, numpy, dlpack, other };

struct TypeEntry {
  PyTypeObject* type = nullptr;  // owned, so that the address is never reused
  Kind kind = Kind::unknown;
  const dlpack::ExchangeApi* api = nullptr;
};

// Guarded by the GIL. Types beyond the table are classified at every call.
constexpr int kCachedTypes = 16;
TypeEntry cached_types[kCachedTypes];
int cached_count = 0;

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  for (const char* name : {"__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__"}) {
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), name);
    if (!capsule) {
      PyErr_Clear();
      continue;
    }
    const void* pointer = nullptr;
    if (PyCapsule_CheckExact(capsule))
      pointer = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    Py_DECREF(capsule);  // the type keeps it
    const auto* api = static_cast<const dlpack::ExchangeApi*>(pointer);
    if (api && api->header.version.major == 1 && api->tensor_from_py_object) return api;
  }
  PyErr_Clear();
  return nullptr;
}

PyObject* torch_attribute(const char* name) {
  PyObject* torch = PyImport_AddModule("torch");  // borrowed; torch is loaded when a tensor exists
  return torch ? PyObject_GetAttrString(torch, name) : nullptr;
}

TypeEntry classify(PyTypeObject* type) {
  TypeEntry e;
  e.type = type;
  const auto handle = py::handle(reinterpret_cast<PyObject*>(type));
  const std::string module = py::str(py::getattr(handle, "__module__", py::str("")));
  const bool is_torch_class =
      (module == "torch" && std::string(type->tp_name) == "Tensor") ||
      (module == "torch.nn.parameter" && std::string(type->tp_name) == "Parameter");
  if (py::isinstance<py::array>(handle) ||
      PyType_IsSubtype(type, py::detail::npy_api::get().PyArray_Type_)) {
    e.kind = Kind::numpy;
  } else if (is_torch_class) {
    e.kind = Kind::torch;
    e.api = exchange_api(type);
    // First torch tensor of the process: make the ops known to torch.library.
    py::module_::import("pixleap._torch").attr("register")();
  } else {
    PyObject* tensor_class = nullptr;
    if (PyDict_GetItemString(PyImport_GetModuleDict(), "torch"))
      tensor_class = torch_attribute("Tensor");
    if (!tensor_class) PyErr_Clear();
    if (tensor_class && PyType_Check(tensor_class) &&
        PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(tensor_class)))
      e.kind = Kind::torch_subclass;
    else
      e.kind = py::hasattr(handle, "__dlpack__") ? Kind::dlpack : Kind::other;
    Py_XDECREF(tensor_class);
  }
  if (cached_count < kCachedTypes) {
    Py_INCREF(type);
    cached_types[cached_count++] = e;
  }
  return e;
}

DType dtype_from_dlpack(dlpack::DataType t) {
  if (t.lanes != 1) return DType::other;
  switch (t.code * 256 + t.bits) {
    case dlpack::kFloat * 256 + 32:
      return DType::f32;
    case dlpack::kFloat * 256 + 16:
      return DType::f16;
    case dlpack::kFloat * 256 + 64:
      return DType::f64;
    case dlpack::kBfloat * 256 + 16:
      return DType::bf16;
    case dlpack::kInt * 256 + 32:
      return DType::i32;
    case dlpack::kInt * 256 + 64:
      return DType::i64;
    case dlpack::kInt * 256 + 8:
      return DType::i8;
    case dlpack::kUInt * 256 + 8:
      return DType::u8;
    case dlpack::kBool * 256 + 8:
      return DType::boolean;
    default:
      return DType::other;
  }
}

DType dtype_from_numpy(const py::dtype& d) {
  if (d.byteorder() == '>') return DType::other;
  if (d.kind() == 'V' || d.num() >= 256)
    return py::cast<std::string>(py::str(d.attr("name"))) == "bfloat16" ? DType::bf16
                                                                        : DType::other;
  const auto bytes = d.itemsize();
  switch (d.kind()) {
    case 'f':
      return bytes == 4   ? DType::f32
             : bytes == 8 ? DType::f64
             : bytes == 2 ? DType::f16
                          : DType::other;
    case 'i':
      return bytes == 4   ? DType::i32
             : bytes == 8 ? DType::i64
             : bytes == 1 ? DType::i8
                          : DType::other;
    case 'u':
      return bytes == 1 ? DType::u8 : DType::other;
    case 'b':
      return DType::boolean;
    default:
      return DType::other;
  }
}

bool is_true_attribute(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (!value) {
    PyErr_Clear();
    return false;
  }
  const bool yes = value == Py_True;
  Py_DECREF(value);
  return yes;
}

bool is_true_call(PyObject* object, PyObject* method) {
  PyObject* value = PyObject_CallMethodNoArgs(object, method);
  if (!value) {
    PyErr_Clear();
    return false;
  }
  const bool yes = value == Py_True;
  Py_DECREF(value);
  return yes;
}

bool grad_enabled() {
  PyObject* function = torch_attribute("is_grad_enabled");
  PyObject* value = function ? PyObject_CallNoArgs(function) : nullptr;
  const bool yes = value == Py_True;
  Py_XDECREF(value);
  Py_XDECREF(function);
  PyErr_Clear();
  return yes;
}

std::string take_python_error() {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  std::string text = value ? py::cast<std::string>(py::str(py::handle(value))) : "no reason given";
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return text;
}

}  // namespace

CallScope::~CallScope() {
  for (int i = 0; i < exports_; ++i) Py_DECREF(capsules_[i]);  // runs the exporter's deleter
}

void CallScope::reject(const char* argument, const std::string& expected,
                       const std::string& got) const {
  throw TypeError(std::string(op_) + ": argument '" + argument + "' expected " + expected +
                  ", got " + got);
}

View CallScope::view(PyObject* object, const char* argument) {
  PyTypeObject* type = Py_TYPE(object);
  const TypeEntry* entry = nullptr;
  for (int i = 0; i < cached_count; ++i)
    if (cached_types[i].type == type) {
      entry = &cached_types[i];
      break;
    }
  TypeEntry fresh;
  if (!entry) {
    fresh = classify(type);
    entry = &fresh;
  }
  switch (entry->kind) {
    case Kind::torch:
      return from_torch(object, argument, entry->api);
    case Kind::numpy:
      return from_numpy(object, argument);
    case Kind::torch_subclass:
      throw NeedsTorchDispatch{};
    case Kind::dlpack:
      return from_dlpack(object, argument);
    default:
      reject(argument, "an array (torch, NumPy or DLPack)", type->tp_name);
  }
}

View CallScope::from_torch(PyObject* object, const char* argument, const dlpack::ExchangeApi* api) {
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  static PyObject* const is_meta = PyUnicode_InternFromString("is_meta");
  if (is_true_attribute(object, requires_grad) && grad_enabled())
    reject(argument,
           "a tensor without gradient (these ops are for inference: call under "
           "torch.no_grad() or pass .detach())",
           "one with requires_grad=True");
  if (!api) {
    if (is_true_attribute(object, is_meta)) throw NeedsTorchDispatch{};
    return from_dlpack(object, argument);
  }
  dlpack::Tensor t;
  if (api->tensor_from_py_object(object, &t) != 0) {
    const std::string reason = take_python_error();
    if (is_true_attribute(object, is_meta)) throw NeedsTorchDispatch{};
    reject(argument, "a tensor that DLPack can describe", reason);
  }
  View v = from_tensor(t, argument);
  if (v.device.type == DeviceType::cuda)
    api->current_work_stream(dlpack::kCuda, v.device.index, &v.device.stream);
  // DLPack drops the negation bit of z.conj().imag without a word. Such views are never compact, so
  // the common case need not ask (80 ns per tensor).
  if ((!v.is_contiguous() || v.numel() <= 1) && is_true_call(object, is_neg))
    reject(argument, "a plain tensor", "a lazily negated view (call .resolve_neg())");
  return v;
}

View CallScope::from_tensor(const dlpack::Tensor& t, const char* argument) {
  View v;
  v.name = argument;
  v.defined = true;
  if (t.ndim > kMaxDims) reject(argument, "at most 8 dimensions", std::to_string(t.ndim));
  v.dtype = dtype_from_dlpack(t.dtype);
  v.ndim = t.ndim;
  int64_t compact = 1;
  bool overflow = false;
  for (int i = t.ndim - 1; i >= 0; --i) {
    v.shape[i] = t.shape[i];
    v.strides[i] = t.strides ? t.strides[i] : compact;
    overflow = overflow || t.shape[i] < 0 ||
               __builtin_mul_overflow(compact, t.shape[i] ? t.shape[i] : 1, &compact);
  }
  if (overflow || compact > (int64_t{1} << 48))
    reject(argument, "a size that fits memory", "shape " + shape_string(v));
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  if (!t.data) v.data = nullptr;
  if (!t.data && v.numel() > 0)
    reject(argument, "an array with data", "one without storage (a fake or wrapped tensor?)");
  switch (t.device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      break;
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      v.device = {DeviceType::cuda, t.device.id, nullptr};
      break;
    default:
      reject(argument, "a CPU or CUDA array",
             "DLPack device type " + std::to_string(t.device.type));
  }
  return v;
}

View CallScope::from_numpy(PyObject* object, const char* argument) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  View v;
  v.name = argument;
  v.defined = true;
  if (array.ndim() > kMaxDims)
    reject(argument, "at most 8 dimensions", std::to_string(array.ndim()));
  v.dtype = dtype_from_numpy(array.dtype());
  v.read_only = !array.writeable();
  v.ndim = static_cast<int32_t>(array.ndim());
  const auto bytes = static_cast<int64_t>(array.itemsize());
  for (int i = 0; i < v.ndim; ++i) {
    v.shape[i] = array.shape(i);
    v.strides[i] = bytes ? array.strides(i) / bytes : 0;
    if (bytes && v.dtype != DType::other && array.strides(i) % bytes != 0)
      reject(argument, "strides that are whole elements", "byte strides of a record field");
  }
  v.data = const_cast<void*>(array.data());
  if (v.dtype != DType::other &&
      reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes))
    reject(argument, "an aligned array", "an unaligned one");
  return v;
}

View CallScope::from_dlpack(PyObject* object, const char* argument) {
  if (exports_ == kMaxExports) reject(argument, "at most 48 arrays", "more");
  PyObject* capsule = PyObject_CallMethod(object, "__dlpack__", nullptr);
  if (!capsule) reject(argument, "an array that DLPack can export", take_python_error());
  capsules_[exports_++] = capsule;
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    const auto* m = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    View v = from_tensor(m->tensor, argument);
    v.read_only = m->flags & 1;
    return v;
  }
  if (!PyCapsule_IsValid(capsule, "dltensor"))
    reject(argument, "a DLPack capsule", "something else from __dlpack__");
  return from_tensor(
      static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"))->tensor,
      argument);
}

}  // namespace pixleap::bind
