// lincomb without Python: three inputs to one output over a range of sizes.
#include "ops/lincomb/lincomb.h"

#include <string>
#include <vector>

#include "micro.h"

namespace {

pixleap::View view_of(std::vector<float>& data, const char* name) {
  pixleap::View v;
  v.data = data.data();
  v.dtype = pixleap::DType::f32;
  v.defined = true;
  v.ndim = 1;
  v.name = name;
  v.shape[0] = static_cast<int64_t>(data.size());
  v.strides[0] = 1;
  return v;
}

}  // namespace

int main() {
  using namespace pixleap;
  micro::header();
  for (const int64_t n : {int64_t{1} << 12, int64_t{1} << 16, int64_t{1} << 20, int64_t{1} << 24}) {
    std::vector<float> a(static_cast<size_t>(n), 1.f), b = a, c = a, result = a;
    const View inputs[] = {view_of(a, "inputs"), view_of(b, "inputs"), view_of(c, "inputs")};
    Out out;
    static_cast<View&>(out) = view_of(result, "out");
    const double coefficients[] = {0.5, -1.0, 2.0};
    const auto call = [&] {
      lincomb({&out, 1}, inputs, coefficients, {}, {}, __builtin_inf(), {}, {}, 0, 0, 0);
      micro::keep(result.data());
    };
    const std::string name = "lincomb 3 to 1, " + std::to_string(n) + " floats";
    micro::report(name.c_str(), micro::measure(call), 16.0 * double(n), 6.0 * double(n));
  }
}
