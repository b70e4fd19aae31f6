#include "lapack/lapack.h"

#include <dlfcn.h>

#include <string>

#include "core/check.h"

namespace pixleap {
namespace {

constexpr const char* kFile = "libscipy_openblas.so";
// From here on the two-stage reduction to tridiagonal form pays: it moves most of the work from
// matrix-vector to matrix-matrix products.
constexpr int64_t kTwoStage = 4096;

std::mutex session_mutex;

std::string beside_this_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&beside_this_library), &info) || !info.dli_fname)
    return kFile;
  const std::string self = info.dli_fname;
  const size_t slash = self.rfind('/');
  return slash == std::string::npos ? kFile : self.substr(0, slash + 1) + kFile;
}

}  // namespace

template <class F>
void Lapack::find(void* library, const char* name, F& f) {
  f = reinterpret_cast<F>(dlsym(library, name));
  if (!f) throw BackendError(std::string(kFile) + " has no function " + name);
}

Lapack::Lapack(void* library) {
  find(library, "scipy_openblas_set_num_threads", set_num_threads_);
  find(library, "scipy_dpotrf_", potrf_);
  find(library, "scipy_dpstrf_", pstrf_);
  find(library, "scipy_dsygst_", sygst_);
  find(library, "scipy_dsyevd_", syevd_);
  find(library, "scipy_dsyevd_2stage_", syevd_2stage_);
  find(library, "scipy_dgesdd_", gesdd_);
  find(library, "scipy_dgemm_", gemm_);
  find(library, "scipy_dsyrk_", syrk_);
}

const Lapack& Lapack::get(const char* op) {
  static const Lapack lapack = [op] {
    void* library = dlopen(beside_this_library().c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library)
      throw BackendError(std::string(op) +
                         ": needs LAPACK, which could not be loaded: " + dlerror());
    return Lapack(library);
  }();
  return lapack;
}

Lapack::Session::Session(const Lapack& lapack, int threads) : lock_(session_mutex) {
  lapack.set_num_threads_(threads);
}

bool Lapack::cholesky(int64_t size, double* a) const {
  const Int n = static_cast<Int>(size);
  Int info = 0;
  potrf_("L", &n, a, &n, &info, 1);
  return info == 0;
}

int64_t Lapack::pivoted_cholesky(int64_t size, double* a, int* pivot, double tolerance,
                                 double* work) const {
  const Int n = static_cast<Int>(size);
  Int rank = 0, info = 0;
  pstrf_("L", &n, a, &n, pivot, &rank, &tolerance, work, &info, 1);
  return rank;
}

void Lapack::congruence(int64_t size, double* a, const double* l) const {
  const Int n = static_cast<Int>(size), type = 2;
  Int info = 0;
  sygst_(&type, "L", &n, a, &n, l, &n, &info, 1);
}

void Lapack::call_syevd(Syevd* f, const char* job, int64_t size, double* a, double* values) const {
  const Int n = static_cast<Int>(size), query = -1;
  double best = 0;
  Int best_int = 0, info = 0;
  f(job, "L", &n, a, &n, values, &best, &query, &best_int, &query, &info, 1, 1);
  const Int length = static_cast<Int>(best) + 1, int_length = best_int + 1;
  const auto work = scratch<double>(length);
  const auto int_work = scratch<Int>(int_length);
  f(job, "L", &n, a, &n, values, work.get(), &length, int_work.get(), &int_length, &info, 1, 1);
  if (info != 0) throw BackendError("LAPACK dsyevd did not converge");
}

void Lapack::eigenvalues(int64_t n, double* a, double* values) const {
  call_syevd(n >= kTwoStage ? syevd_2stage_ : syevd_, "N", n, a, values);
}

void Lapack::eigenvectors(int64_t n, double* a, double* values) const {
  call_syevd(syevd_, "V", n, a, values);
}

void Lapack::singular_values(int64_t rows, int64_t columns, double* a, double* values) const {
  const Int m = static_cast<Int>(rows), n = static_cast<Int>(columns), one = 1, query = -1;
  const auto int_work = scratch<Int>(8 * (m < n ? m : n));
  double best = 0, none = 0;
  Int info = 0;
  gesdd_("N", &m, &n, a, &m, values, &none, &one, &none, &one, &best, &query, int_work.get(), &info,
         1);
  const Int length = static_cast<Int>(best) + 1;
  const auto work = scratch<double>(length);
  gesdd_("N", &m, &n, a, &m, values, &none, &one, &none, &one, work.get(), &length, int_work.get(),
         &info, 1);
  if (info != 0) throw BackendError("LAPACK dgesdd did not converge");
}

void Lapack::multiply_transposed(int64_t rows, int64_t columns, int64_t inner, const double* a,
                                 const double* b, double* c) const {
  const Int m = static_cast<Int>(rows), n = static_cast<Int>(columns), k = static_cast<Int>(inner);
  const double one = 1, zero = 0;
  gemm_("T", "N", &m, &n, &k, &one, a, &k, b, &k, &zero, c, &m, 1, 1);
}

void Lapack::gram(int64_t size, int64_t inner, const double* a, bool transposed, double alpha,
                  double beta, double* c) const {
  const Int n = static_cast<Int>(size), k = static_cast<Int>(inner);
  syrk_("L", transposed ? "T" : "N", &n, &k, &alpha, a, transposed ? &k : &n, &beta, c, &n, 1, 1);
}

}  // namespace pixleap
