// The linear-Gaussian kernels of one instruction set.
#include "gaussian.h"

#include "pick.h"

namespace optctl::OPTCTL_ISA {

template <class T, int NX, int NY>
struct Forward {
  template <Keep keep>
  static int32_t run(const Sizes& sizes, const Stages<T>* in, T* const* out) {
    return kalman_forward<T, NX, NY>(keep, sizes, in, out);
  }
};

template <class T, int NX, int NY>
struct Likelihood {
  static constexpr Kernel<T> kernel = Forward<T, NX, NY>::template run<Keep::nothing>;
};

template <class T, int NX, int NY>
struct Filtered {
  static constexpr Kernel<T> kernel = Forward<T, NX, NY>::template run<Keep::filtered>;
};

template <class T, int NX, int NY>
struct Factors {
  static constexpr Kernel<T> kernel = Forward<T, NX, NY>::template run<Keep::factors>;
};

template <class T, int NX, int NY>
struct Filter {
  static constexpr Kernel<T> kernel = Forward<T, NX, NY>::template run<Keep::predicted>;
};

template <class T, int NX, int NY>
struct Smoother {
  static constexpr Kernel<T> kernel = kalman_smoother<T, NX, NY>;
};

template <class T, int NX, int NY>
struct Score {
  static constexpr Kernel<T> kernel = kalman_score<T, NX, NY>;
};

template <class T, template <class, int, int> class Make>
Kernel<T> pick_kalman(const Sizes& sizes) {
  if constexpr (sizeof(T) == 4) return Make<T, 0, 0>::kernel;
  else return pick<T, Make>(sizes.nx, sizes.ny, KalmanSizes{}, MeasurementSizes{});
}

template <class T>
Kernel<T> find_gaussian(Name name, const Sizes& sizes) {
  switch (name) {
    case Name::kalman_likelihood: return pick_kalman<T, Likelihood>(sizes);
    case Name::kalman_forward: return pick_kalman<T, Filtered>(sizes);
    case Name::kalman_factors: return pick_kalman<T, Factors>(sizes);
    case Name::kalman_filter: return pick_kalman<T, Filter>(sizes);
    case Name::kalman_smoother: return pick_kalman<T, Smoother>(sizes);
    default: return pick_kalman<T, Score>(sizes);
  }
}

extern const Finders gaussian_finders = {find_gaussian<float>, find_gaussian<double>};

}  // namespace optctl::OPTCTL_ISA
