// LAPACK and BLAS of the PyPI package scipy-openblas32 (symbols scipy_*, 32-bit integers), whose
// library lies beside ours and is loaded by the first op that needs it: importing pixleap stays
// light. Matrices are column-major; of symmetric ones the lower triangle is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "core/scratch.h"

namespace pixleap {

class Lapack {
 public:
  // The library; throws BackendError that names `op` where it cannot be loaded.
  static const Lapack& get(const char* op);

  // a := L with L L^T = a. False where a pivot was not positive.
  bool cholesky(int64_t n, double* a) const;
  // a := L of P^T a P = L L^T by complete pivoting, stopped below `tolerance`; `pivot` counts
  // from 1 and has n entries, work 2 n. Returns the rank.
  int64_t pivoted_cholesky(int64_t n, double* a, int* pivot, double tolerance, double* work) const;
  // a := L^T a L, of which the lower triangle is written.
  void congruence(int64_t n, double* a, const double* l) const;
  // Ascending eigenvalues of a, which is destroyed.
  void eigenvalues(int64_t n, double* a, double* values) const;
  // Ascending eigenvalues; a := eigenvectors in columns.
  void eigenvectors(int64_t n, double* a, double* values) const;
  // Descending singular values of a (m x n), which is destroyed.
  void singular_values(int64_t m, int64_t n, double* a, double* values) const;
  // c := a^T b with a (k x m), b (k x n).
  void multiply_transposed(int64_t m, int64_t n, int64_t k, const double* a, const double* b,
                           double* c) const;
  // Lower triangle of c := alpha a a^T + beta c with a (n x k), or with a^T a and a (k x n) where
  // `transposed`.
  void gram(int64_t n, int64_t k, const double* a, bool transposed, double alpha, double beta,
            double* c) const;

  // The library's thread count is one for the process: who computes holds this.
  class Session {
   public:
    Session(const Lapack& lapack, int threads);

   private:
    std::lock_guard<std::mutex> lock_;
  };

 private:
  explicit Lapack(void* library);
  template <class F>
  void find(void* library, const char* name, F& f);

  using Int = int;
  void (*set_num_threads_)(int);
  void (*potrf_)(const char*, const Int*, double*, const Int*, Int*, size_t);
  void (*pstrf_)(const char*, const Int*, double*, const Int*, Int*, Int*, const double*, double*,
                 Int*, size_t);
  void (*sygst_)(const Int*, const char*, const Int*, double*, const Int*, const double*,
                 const Int*, Int*, size_t);
  using Syevd = void(const char*, const char*, const Int*, double*, const Int*, double*, double*,
                     const Int*, Int*, const Int*, Int*, size_t, size_t);
  Syevd *syevd_, *syevd_2stage_;
  void (*gesdd_)(const char*, const Int*, const Int*, double*, const Int*, double*, double*,
                 const Int*, double*, const Int*, double*, const Int*, Int*, Int*, size_t);
  void (*gemm_)(const char*, const char*, const Int*, const Int*, const Int*, const double*,
                const double*, const Int*, const double*, const Int*, const double*, double*,
                const Int*, size_t, size_t);
  void (*syrk_)(const char*, const char*, const Int*, const Int*, const double*, const double*,
                const Int*, const double*, double*, const Int*, size_t, size_t);
  void call_syevd(Syevd* f, const char* job, int64_t n, double* a, double* values) const;
};

}  // namespace pixleap
