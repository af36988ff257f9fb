// What a kernel is given: one problem's arrays, each with the distance from one stage to the next (0 if invariant).
#pragma once

#include <cstddef>
#include <cstdint>

namespace optctl {

template <class T>
struct Stages {
  const T* data;
  ptrdiff_t step;
  const T* operator[](int64_t t) const { return data + t * step; }
};

struct Sizes {
  int64_t N;
  int nx, nu, ny;
};

template <class T>
using Kernel = int32_t (*)(const Sizes&, const Stages<T>* in, T* const* out);

}  // namespace optctl
