// Which instruction set to run on. OPTCTL_X86 says that the library holds the three x86 versions.
#include "kernels.h"

namespace optctl {

#ifdef OPTCTL_X86
namespace avx512 { extern const Finders lq_finders, gaussian_finders; }
namespace avx2 { extern const Finders lq_finders, gaussian_finders; }
#endif
namespace portable { extern const Finders lq_finders, gaussian_finders; }

namespace {

const Finders& finders_for(bool lq) {
#ifdef OPTCTL_X86
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512) return lq ? avx512::lq_finders : avx512::gaussian_finders;
  if (has_avx2) return lq ? avx2::lq_finders : avx2::gaussian_finders;
#endif
  return lq ? portable::lq_finders : portable::gaussian_finders;
}

bool is_lq(Name name) { return name == Name::lq_factor || name == Name::lq_sweep; }

}  // namespace

template <>
Kernel<float> find_kernel<float>(Name name, const Sizes& sizes) { return finders_for(is_lq(name)).in_float(name, sizes); }

template <>
Kernel<double> find_kernel<double>(Name name, const Sizes& sizes) {
  return finders_for(is_lq(name)).in_double(name, sizes);
}

}  // namespace optctl
