// What goes into the interior point kernel and what comes back: the one description of it. C++ makes its structures and
// its lists of operands from here, and Python packs by these names (optctl/shooting/native.py).
#pragma once

// Whole numbers before the tapes: rows of a stage and of the end (inequalities, equalities), rows in all, is any soft,
// columns of the history, are feedback gains wanted, is the start a warm one, is it a start at all (else the iterations
// go on), is the point to be measured and nothing else, is the problem a quadratic program, did the user give scales, and
// where each block of rows begins.
#define OPTCTL_SIZES(X)                                                                               \
  X(N) X(nx) X(nu) X(path_inequalities) X(path_equalities) X(terminal_inequalities)                   \
  X(terminal_equalities) X(rows) X(has_soft) X(history) X(gains) X(warm)                              \
  X(begin) X(measure) X(quadratic) X(x_given) X(u_given)                                              \
  X(x0_min) X(x0_max) X(x_min) X(x_max) X(u_min) X(u_max) X(path_inequality) X(path_equality)         \
  X(terminal_inequality) X(terminal_equality)

// How to run; a barrier that is NaN is chosen, and a `stop` below zero asks for the start alone.
#define OPTCTL_SETTINGS(X) X(tolerance) X(stop) X(seconds) X(barrier) X(least)

// What the loop carries besides the unknowns: the scalars of `State` in optctl/shooting/barrier.py.
#define OPTCTL_NUMBERS(X)                                                                             \
  X(mu) X(floor) X(theta_first) X(first_cost) X(shift) X(phase) X(mark) X(mu_restore)        \
  X(short_steps) X(iterations) X(status) X(step) X(seconds) X(entries) X(retried) X(nudges)

// What the certificate says of the point where a call ends (`Certificate` in optctl/solution.py), in the user's units.
#define OPTCTL_FIGURES(X)                                                                             \
  X(stationarity) X(stationarity_scaled) X(primal_feasibility) X(primal_feasibility_scaled)           \
  X(dual_feasibility) X(dual_feasibility_scaled) X(complementarity) X(complementarity_scaled)         \
  X(strict_complementarity)

// Operands with the rank of one problem's: S number, V vector, M matrix, m matrices. Numbers are in the units of the
// iterations (scaling.h), everything else in the user's. Those that are results, too, are worked on in place; a start
// takes of them xs, us, the scales that are given, and if it is warm, costates and y. The first two are whole numbers.
#define OPTCTL_OPERANDS(X)                                                                            \
  X(info, V) X(kind, V) X(memory, V) X(bounds, V) X(l1, V) X(l2, V) X(x0_free, V) X(x_linear, V) X(settings, V) \
  X(x_scale, V) X(u_scale, V) X(row_scale, V) X(cost_scale, S)                                       \
  X(numbers, V) X(filter, M) X(history, M) X(xs, M) X(us, M) X(costates, M) X(s, V) X(y, V) X(e, V) X(v, V)

#define OPTCTL_RESULTS(X)                                                                             \
  X(x_scale, V) X(u_scale, V) X(row_scale, V) X(cost_scale, S) X(figures, V)                          \
  X(numbers, V) X(filter, M) X(history, M) X(xs, M) X(us, M) X(costates, M) X(s, V) X(y, V) X(e, V) X(v, V) \
  X(cost, S) X(gaps, M) X(c, V) X(q0, V) X(qs, M) X(rs, M) X(A, m) X(B, m) X(path_inequality, m)      \
  X(path_equality, m) X(terminal_inequality, M) X(terminal_equality, M) X(W0, M) X(W, m) X(Wf, M) X(K, m)
