// Which instruction set to run on. OPTCTL_X86 says that the library holds the three x86 versions.
#include "kernels.h"

namespace optctl {

#ifdef OPTCTL_X86
namespace avx512 { extern const Finders lq_finders, gaussian_finders, square_root_finders; extern const TapeRunner tape_runner; }
namespace avx2 { extern const Finders lq_finders, gaussian_finders, square_root_finders; extern const TapeRunner tape_runner; }
#endif
namespace portable { extern const Finders lq_finders, gaussian_finders, square_root_finders; extern const TapeRunner tape_runner; }

namespace {

const Finders& choose(Name name, const Finders& lq, const Finders& gaussian, const Finders& square_root) {
  if (name < Name::kalman_likelihood) return lq;
  return name < Name::square_root_likelihood ? gaussian : square_root;
}

#ifdef OPTCTL_X86
bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return has;
}

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
#endif

const Finders& finders_for(Name name) {
#ifdef OPTCTL_X86
  if (has_avx512()) return choose(name, avx512::lq_finders, avx512::gaussian_finders, avx512::square_root_finders);
  if (has_avx2()) return choose(name, avx2::lq_finders, avx2::gaussian_finders, avx2::square_root_finders);
#endif
  return choose(name, portable::lq_finders, portable::gaussian_finders, portable::square_root_finders);
}

}  // namespace

template <>
Kernel<float> find_kernel<float>(Name name, const Sizes& sizes) { return finders_for(name).in_float(name, sizes); }

template <>
Kernel<double> find_kernel<double>(Name name, const Sizes& sizes) { return finders_for(name).in_double(name, sizes); }

const TapeRunner& find_tape_runner() {
#ifdef OPTCTL_X86
  if (has_avx512()) return avx512::tape_runner;
  if (has_avx2()) return avx2::tape_runner;
#endif
  return portable::tape_runner;
}

}  // namespace optctl
