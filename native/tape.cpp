// A tape by itself, for one instruction set.
#include "tape.h"

#include "gradient.h"
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
  roll(tape, N, static_cast<int>(nx), static_cast<int>(nu), xs, us);
};

extern const GradientKernel gradient_kernel = [](const int32_t* program, const double* memory, const int64_t* sizes,
                                                 const double* us, const double* signs, double* const* r) {
  gradient(program, memory, sizes[0], static_cast<int>(sizes[1]), static_cast<int>(sizes[2]),
           static_cast<int>(sizes[3]), sizes[4] != 0, static_cast<int>(sizes[5]), us, signs,
           {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11],
            r[12], r[13], r[14], r[15], r[16]});
};

extern const HessianProduct hessian_product_kernel = [](const int64_t* sizes, const double* const* in, double* const* out) {
  hessian_product(sizes[0], static_cast<int>(sizes[1]), static_cast<int>(sizes[2]), in[0], in[1], in[2], in[3], in[4],
                  in[5], in[6], out[0], out[1], out[2], out[3]);
};

extern const FollowKernel follow_kernel = [](const int32_t* program, const double* memory, const int64_t* sizes,
                                             const double* const* in, double* const* out) {
  follow(program, memory, sizes[0], static_cast<int>(sizes[1]), static_cast<int>(sizes[2]), in[0], in[1], in[2], in[3],
         in[4], out[0], out[1], out[2]);
};

}  // namespace optctl::OPTCTL_ISA
