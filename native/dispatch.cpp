// Which instruction set to run on. OPTCTL_X86 says that the library holds the three x86 versions.
#include "kernels.h"

namespace optctl {

// On tapes many numbers stand side by side, and AVX-512 pays; for small matrices it does not, nor for large ones.
#define OPTCTL_LONG_LOOPS_OF(isa)           \
  namespace isa {                           \
  extern const TapeRunner tape_runner;      \
  extern const HostKernels host_kernels;    \
  extern const MarchKernel march_kernel, dense_kernel, pull_back_kernel; \
  extern const SolverKernel interior_point; \
  }
#define OPTCTL_MATRICES_OF(isa)                                           \
  namespace isa {                                                         \
  extern const Finders lq_finders, gaussian_finders, square_root_finders; \
  }

#ifdef OPTCTL_X86
OPTCTL_LONG_LOOPS_OF(avx512)
OPTCTL_LONG_LOOPS_OF(avx2)
OPTCTL_MATRICES_OF(avx2)
#endif
OPTCTL_LONG_LOOPS_OF(portable)
OPTCTL_MATRICES_OF(portable)

namespace {

struct Kernels {
  const Finders &lq, &gaussian, &square_root;
  const TapeRunner& tape_runner;
  const HostKernels& host_kernels;
  const MarchKernel &march_kernel, &dense_kernel, &pull_back_kernel;
  const SolverKernel& interior_point;
};

#define OPTCTL_CHOOSE(matrices, loops)                                                                  \
  {matrices::lq_finders, matrices::gaussian_finders, matrices::square_root_finders, loops::tape_runner, \
   loops::host_kernels, loops::march_kernel, loops::dense_kernel, loops::pull_back_kernel, loops::interior_point}

const Kernels choose() {
#ifdef OPTCTL_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
      return OPTCTL_CHOOSE(avx2, avx512);
    return OPTCTL_CHOOSE(avx2, avx2);
  }
#endif
  return OPTCTL_CHOOSE(portable, portable);
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

const Finders& finders_for(Name name) {
  if (name < Name::kalman_likelihood) return kernels().lq;
  return name < Name::square_root_likelihood ? kernels().gaussian : kernels().square_root;
}

}  // namespace

template <>
Kernel<float> find_kernel<float>(Name name, const Sizes& sizes) {
  return finders_for(name).in_float(name, sizes);
}

template <>
Kernel<double> find_kernel<double>(Name name, const Sizes& sizes) {
  return finders_for(name).in_double(name, sizes);
}

TapeRunner find_tape_runner() { return kernels().tape_runner; }
const HostKernels& host_kernels() { return kernels().host_kernels; }
MarchKernel find_march() { return kernels().march_kernel; }
MarchKernel find_dense() { return kernels().dense_kernel; }
MarchKernel find_pull_back() { return kernels().pull_back_kernel; }
SolverKernel find_interior_point() { return kernels().interior_point; }

}  // namespace optctl
