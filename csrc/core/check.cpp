#include "core/check.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>

namespace pixleap {
namespace {

std::string device_string(const Device& d) {
  return d.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(d.index);
}

std::string number(double x) {
  char text[40];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

// Address range [first, last) that a view can touch, in bytes.
struct Range {
  intptr_t first, last;
};
Range range_of(const View& v) {
  intptr_t low = 0, high = 0;
  for (int i = 0; i < v.ndim; ++i) {
    const intptr_t reach = static_cast<intptr_t>((v.shape[i] - 1) * v.strides[i]);
    (reach < 0 ? low : high) += reach;
  }
  const auto base = reinterpret_cast<intptr_t>(v.data);
  const auto bytes = static_cast<intptr_t>(dtype_size(v.dtype));
  return {base + low * bytes, base + (high + 1) * bytes};
}

bool same_layout(const View& a, const View& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i)
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.strides[i] != b.strides[i])) return false;
  return true;
}

}  // namespace

std::string shape_string(const View& v) {
  std::string s = "(";
  for (int i = 0; i < v.ndim; ++i) {
    if (i) s += ", ";
    s += std::to_string(v.shape[i]);
  }
  return s + (v.ndim == 1 ? ",)" : ")");
}

void Check::fail_value(const char* name, const std::string& expected,
                       const std::string& got) const {
  throw ValueError(std::string(op_) + ": argument '" + name + "' expected " + expected + ", got " +
                   got);
}

void Check::fail_type(const char* name, const std::string& expected, const std::string& got) const {
  throw TypeError(std::string(op_) + ": argument '" + name + "' expected " + expected + ", got " +
                  got);
}

void Check::dtype(const View& v, std::initializer_list<DType> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), v.dtype) != allowed.end()) return;
  std::string expected = "dtype ";
  for (const DType* t = allowed.begin(); t != allowed.end(); ++t) {
    if (t != allowed.begin()) expected += t + 1 == allowed.end() ? " or " : ", ";
    expected += dtype_name(*t);
  }
  fail_type(v.name, expected, dtype_name(v.dtype));
}

void Check::same_dtype(const View& v, const View& like) const {
  if (v.dtype == like.dtype) return;
  fail_type(v.name, std::string("dtype ") + dtype_name(like.dtype) + " as '" + like.name + "'",
            dtype_name(v.dtype));
}

void Check::same_device(const View& v, const View& like) const {
  if (v.device == like.device) return;
  fail_type(v.name, "device " + device_string(like.device) + " as '" + like.name + "'",
            device_string(v.device));
}

void Check::on_cpu(const View& v) const {
  if (v.device.type != DeviceType::cpu) fail_type(v.name, "device cpu", device_string(v.device));
}

void Check::ndim(const View& v, int expected) const {
  if (v.ndim == expected) return;
  fail_value(v.name, std::to_string(expected) + " dimensions", "shape " + shape_string(v));
}

void Check::shape(const View& v, std::initializer_list<int64_t> expected) const {
  bool ok = v.ndim == static_cast<int>(expected.size());
  std::string text = "shape (";
  int i = 0;
  for (const int64_t e : expected) {
    if (ok && e >= 0 && v.shape[i] != e) ok = false;
    if (i++) text += ", ";
    text += e < 0 ? "*" : std::to_string(e);
  }
  if (!ok) fail_value(v.name, text + (expected.size() == 1 ? ",)" : ")"), shape_string(v));
}

void Check::same_shape(const View& v, const View& like) const {
  bool ok = v.ndim == like.ndim;
  for (int i = 0; ok && i < v.ndim; ++i) ok = v.shape[i] == like.shape[i];
  if (!ok)
    fail_value(v.name, "shape " + shape_string(like) + " as '" + like.name + "'", shape_string(v));
}

void Check::batch_output(const View& out, const View& like, int dropped) const {
  View expected = like;
  expected.ndim = std::max(0, like.ndim - dropped);
  bool ok = out.ndim == expected.ndim;
  for (int i = 0; ok && i < out.ndim; ++i) ok = out.shape[i] == expected.shape[i];
  if (!ok) fail_value(out.name, "shape " + shape_string(expected), shape_string(out));
  dtype(out, {DType::f64});
  same_device(out, like);
  contiguous(out);
  output(out);
  no_overlap(out, like, false);
}

void Check::contiguous(const View& v) const {
  if (!v.is_contiguous()) fail_value(v.name, "a contiguous array", "a strided view");
}

void Check::unit_last_stride(const View& v) const {
  if (v.ndim > 0 && v.numel() > 0 && v.size(-1) > 1 && v.stride(-1) != 1)
    fail_value(v.name, "stride 1 in the last dimension", "stride " + std::to_string(v.stride(-1)));
}

void Check::output(const View& v) const {
  if (v.read_only) fail_value(v.name, "a writable array", "a read-only one");
  if (v.numel() == 0) return;
  // In the order of their strides, each axis must step beyond what the smaller ones span.
  int order[kMaxDims];
  int axes = 0;
  const auto step = [&](int axis) { return std::abs(v.strides[axis]); };
  for (int i = 0; i < v.ndim; ++i) {
    if (v.shape[i] == 1) continue;
    int at = axes++;
    for (; at > 0 && step(order[at - 1]) > step(i); --at) order[at] = order[at - 1];
    order[at] = i;
  }
  int64_t span = 1;
  for (int i = 0; i < axes; ++i) {
    const int64_t stride = step(order[i]);
    if (stride < span)
      fail_value(v.name, "an output without repeated memory", "a view that overlaps itself");
    span = stride * (v.shape[order[i]] - 1) + span;
  }
}

void Check::no_overlap(const View& out, const View& in, bool identical_ok) const {
  if (!in.defined || out.numel() == 0 || in.numel() == 0) return;
  if (identical_ok && same_layout(out, in)) return;
  const Range a = range_of(out), b = range_of(in);
  if (a.first < b.last && b.first < a.last)
    fail_value(out.name, std::string("memory apart from '") + in.name + "'", "overlapping memory");
}

void Check::value(bool ok, const char* name, const std::string& expected,
                  const std::string& got) const {
  if (!ok) fail_value(name, expected, got);
}
void Check::value(bool ok, const char* name, const std::string& expected, double got) const {
  if (!ok) fail_value(name, expected, number(got));
}
void Check::value(bool ok, const char* name, const std::string& expected, int64_t got) const {
  if (!ok) fail_value(name, expected, std::to_string(got));
}

}  // namespace pixleap
