// A tape by itself, for one instruction set.
#include "tape.h"

#include "gradient.h"
#include "ilqr.h"
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

namespace {

template <class T = double>
T* array(void* const* arrays, int k) { return static_cast<T*>(arrays[k]); }

int whole(int64_t size) { return static_cast<int>(size); }

}  // namespace

extern const HostKernels host_kernels = {
    [](const int64_t* n, void* const* a) {
      tape_runner(array<int32_t>(a, 0), array(a, 1), n[0], array(a, 2), array(a, 3), 1);
    },
    [](const int64_t* n, void* const* a) {
      StageTape tape;
      tape.read(array<int32_t>(a, 0), array(a, 1), 1);
      roll(tape, n[0], whole(n[1]), whole(n[2]), array(a, 3), array(a, 2));
    },
    [](const int64_t* n, void* const* a) {
      const auto r = [&](int k) { return array(a, 4 + k); };
      gradient(array<int32_t>(a, 0), array(a, 1), n[0], whole(n[1]), whole(n[2]), whole(n[3]), n[4] != 0, whole(n[5]),
               array(a, 2), array(a, 3),
               {r(0), r(1), r(2), r(3), r(4), r(5), r(6), r(7), r(8), r(9), r(10), r(11), r(12), r(13), r(14), r(15), r(16)});
    },
    [](const int64_t* n, void* const* a) {
      hessian_product(n[0], whole(n[1]), whole(n[2]), array(a, 0), array(a, 1), array(a, 2), array(a, 3), array(a, 4),
                      array(a, 5), array(a, 6), array(a, 7), array(a, 8), array(a, 9), array(a, 10));
    },
    [](const int64_t* n, void* const* a) {
      follow(array<int32_t>(a, 0), array(a, 1), n[0], whole(n[1]), whole(n[2]), array(a, 2), array(a, 3), array(a, 4),
             array(a, 5), array(a, 6), array(a, 7), array(a, 8), array(a, 9));
    },
    [](const int64_t* n, void* const* a) {
      const double* of = array(a, 9);
      const IlqrSettings settings{n[0], whole(n[1]), whole(n[2]), n[3] != 0, n[4] != 0, n[5], n[6], n[7], of[0],
                                  of[1], of[2], of[3], of[4], of[5], of[6], of[7], of[8]};
      Ilqr solver(settings, array<int32_t>(a, 0), array(a, 1), array<int32_t>(a, 2), array(a, 3), array(a, 4), array(a, 5),
                  array(a, 6), array(a, 7), array(a, 8));
      solver.run(array(a, 15));
      int k = 10;
      for (const Numbers* part : {&solver.xs(), &solver.us(), &solver.slope(), &solver.policy().K, &solver.policy().costates})
        std::copy(part->begin(), part->end(), array(a, k++));
      double* const figures = array(a, 16);
      figures[0] = solver.cost();
      figures[1] = static_cast<double>(solver.iterations()), figures[2] = solver.status();
    },
};

}  // namespace optctl::OPTCTL_ISA
