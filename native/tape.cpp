// A tape by itself, for one instruction set.
#include "tape.h"

#include "kernels.h"

namespace optctl::OPTCTL_ISA {

extern const TapeRunner tape_runner = [](const int32_t* program, const double* memory, int64_t N, double* values,
                                         double* results, int64_t repeat) {
  StageTape tape;
  tape.read(program, memory, N);
  std::vector<Field> in, out;
  const auto as_it_is = [](int) { return 1.0; };
  append(in, values, tape.inputs(), as_it_is);
  append(out, results, tape.outputs(), as_it_is);
  for (int64_t k = 0; k < repeat; ++k) tape.run(in, out);
};

extern const TapeRoller tape_roller = [](const int32_t* program, const double* memory, int64_t N, int64_t nx,
                                         int64_t nu, double* xs, const double* us) {
  StageTape tape;
  tape.read(program, memory, 1);
  std::vector<double> in(nx + nu + 1);
  for (int64_t t = 0; t < N; ++t, xs += nx, us += nu) {
    std::copy_n(xs, nx, in.begin());
    std::copy_n(us, nu, in.begin() + nx);
    in.back() = static_cast<double>(t);
    tape.step(in.data(), tape.outputs() - static_cast<int>(nx), xs + nx);
  }
};

}  // namespace optctl::OPTCTL_ISA
