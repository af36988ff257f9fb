// The kernels of one instruction set, compiled for the sizes of stages.h's lists; compiled once for each set.
#include "kernels.h"

#include "lq.h"

namespace optctl {
namespace OPTCTL_ISA {

// The smallest compiled size that holds n, or 0 for the version with run-time sizes.
template <int... Compiled>
constexpr int compiled_size(int n, Sequence<Compiled...>) {
  int best = 0;
  ((n <= Compiled && (best == 0 || Compiled < best) ? best = Compiled : 0), ...);
  return best;
}

template <class T, int NX, int NU>
struct Factor {
  static constexpr Kernel<T> kernel = lq_factor<T, NX, NU>;
};

template <class T, int NX, int NU>
struct Sweep {
  static constexpr Kernel<T> kernel = lq_sweep<T, NX, NU>;
};

template <class T, template <class, int, int> class Make, int NX, int... NU>
Kernel<T> pick_second(int m, Sequence<NU...>) {
  Kernel<T> found = nullptr;
  ((m == NU ? found = Make<T, NX, NU>::kernel : nullptr), ...);
  return found;
}

template <class T, template <class, int, int> class Make, int... NX, class Seconds>
Kernel<T> pick(int first, int second, Sequence<NX...> firsts, Seconds seconds) {
  const int n = compiled_size(first, firsts), m = compiled_size(second, seconds);
  Kernel<T> found = Make<T, 0, 0>::kernel;
  if (n && m) ((n == NX ? found = pick_second<T, Make, NX>(m, seconds) : nullptr), ...);
  return found;
}

template <class T>
Kernel<T> find(Name name, const Sizes& sizes) {
  switch (name) {
    case Name::lq_factor: return pick<T, Factor>(sizes.nx, sizes.nu, StateSizes{}, SmallSizes{});
    case Name::lq_sweep: return pick<T, Sweep>(sizes.nx, sizes.nu, Widths{}, Widths{});
  }
  return nullptr;
}

extern const Finders finders = {find<float>, find<double>};

}  // namespace OPTCTL_ISA
}  // namespace optctl
