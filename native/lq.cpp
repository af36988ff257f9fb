// The linear-quadratic kernels of one instruction set.
#include "lq.h"

#include "pick.h"

namespace optctl::OPTCTL_ISA {

template <class T, int NX, int NU>
struct Factor {
  static constexpr Kernel<T> kernel = lq_factor<T, NX, NU>;
};

template <class T>
Kernel<T> find_lq(Name name, const Sizes& sizes) {
  if (name == Name::lq_factor) return pick<T, Factor>(sizes.nx, sizes.nu, StateSizes{}, SmallSizes{});
  return lq_sweep<T>;
}

extern const Finders lq_finders = {find_lq<float>, find_lq<double>};

}  // namespace optctl::OPTCTL_ISA
