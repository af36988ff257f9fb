// The square-root kernels of one instruction set. Sizes are run-time; only how wide vectors are depends on them.
#include "square_root.h"

#include "pick.h"

namespace optctl::OPTCTL_ISA {

template <KeepRoots keep>
struct RootPass {
  template <class T, int NX>
  static int32_t run(const Sizes& sizes, const Stages<T>* in, T* const* out) {
    return root_forward<T, NX>(keep, sizes, in, out);
  }
};

struct RootSmoother {
  template <class T, int NX>
  static int32_t run(const Sizes& sizes, const Stages<T>* in, T* const* out) {
    return root_smoother<T, NX>(sizes, in, out);
  }
};

template <class Pass, class T, int... Compiled>
Kernel<T> pick_exact(int nx, Sequence<Compiled...>) {
  Kernel<T> found = Pass::template run<T, 0>;
  if constexpr (sizeof(T) == 8) ((nx == Compiled ? found = Pass::template run<T, Compiled> : nullptr), ...);
  return found;
}

template <class T>
Kernel<T> find_square_root(Name name, const Sizes& sizes) {
  const RootSizes compiled;
  switch (name) {
    case Name::square_root_likelihood: return pick_exact<RootPass<KeepRoots::nothing>, T>(sizes.nx, compiled);
    case Name::square_root_filter: return pick_exact<RootPass<KeepRoots::moments>, T>(sizes.nx, compiled);
    case Name::square_root_forward: return pick_exact<RootPass<KeepRoots::regressions>, T>(sizes.nx, compiled);
    default: return pick_exact<RootSmoother, T>(sizes.nx, compiled);
  }
}

extern const Finders square_root_finders = {find_square_root<float>, find_square_root<double>};

}  // namespace optctl::OPTCTL_ISA
