// The operations of a tape, in the order of OPERATIONS in optctl/tape/expressions.py.
#pragma once

#define OPTCTL_OPERATIONS(X) \
  X(load) X(lookup) X(add) X(sub) X(mul) X(div) X(muladd) X(negmuladd) X(mulsub) X(add_m) X(sub_m) X(rsub_m) \
  X(mul_m) X(div_m) X(muladd_m) X(negmuladd_m) X(mulsub_m) X(muladd_c) X(negmuladd_c) X(neg) X(abs) X(sign) \
  X(floor) X(ceil) X(round) X(rint) X(trunc) X(sqrt) X(isfinite) X(min) X(max) X(select) X(eq) X(ne) X(lt) X(le) \
  X(sin) X(cos) X(exp) X(log) X(pow) X(tan) X(asin) X(acos) X(atan) X(atan2) X(sinh) X(cosh) X(tanh) X(asinh) \
  X(acosh) X(atanh) X(exp2) X(expm1) X(log1p) X(cbrt) X(erf) X(erfc) X(rem) X(copy) \
  X(leave) X(repeat)
