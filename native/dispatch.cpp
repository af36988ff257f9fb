// Which instruction set to run on. OPTCTL_X86 says that the library holds the three x86 versions.
#include "kernels.h"

namespace optctl {

#ifdef OPTCTL_X86
namespace avx512 { extern const Finders finders; }
namespace avx2 { extern const Finders finders; }
#endif
namespace portable { extern const Finders finders; }

const Finders& best_finders() {
#ifdef OPTCTL_X86
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512) return avx512::finders;
  if (has_avx2) return avx2::finders;
#endif
  return portable::finders;
}

}  // namespace optctl
