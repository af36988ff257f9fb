r"""The linear-quadratic regulator and its costates.

Hold a pendulum upright by a torque u at its pivot, linearized about the upright position, x = (angle, rate):

    minimize    sum_{t<N} 1/2 (x_t' Q x_t + u_t' R u_t) + 1/2 x_N' Qf x_N
    subject to  x_{t+1} = A x_t + B u_t,   x_0 given.

The Riccati recursion gives the value functions 1/2 x' P_t x and the gains u_t = K_t x_t. The costates dJ/dx_t obey
costates_N = Qf x_N, costates_t = Q x_t + A' costates_{t+1}, and at any inputs, optimal or not,

    dJ/du_t = R u_t + B' costates_{t+1};      at the optimum it vanishes, and costates_t = P_t x_t.

With |u_t| <= 2.5 N m the first-order conditions hold where the bound is not active. cvxpy solves both problems anew.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

# Model: mass 1 kg, length 1 m, a torque held constant over steps of 0.05 s.
g, dt, N = 9.81, 0.05, 40
dynamics = oc.discretize(lambda x, u: [x[1], g * x[0] + u[0]], dt, "zoh", nx=2, nu=1)
A, B = np.asarray(dynamics.A), np.asarray(dynamics.B)
Q, R, Qf = np.diag([10.0, 1.0]), np.array([[0.1]]), np.diag([100.0, 10.0])
x0 = np.array([0.2, 0.0])
problem = oc.Problem(dynamics, oc.costs.Quadratic(Q, R), oc.costs.TerminalQuadratic(Qf), horizon=N, x0=x0)

# The exact solution, twice: Riccati recursion and convex program.
riccati = oc.lqr(A, B, Q, R, Qf=Qf, x0=x0, horizon=N)
exact = oc.to_cvxpy(problem).solve()
print(f"cost by Riccati {riccati.cost:.9f}, by cvxpy {exact:.9f}")
print(f"first gain K_0 = {np.round(riccati.K[0, 0], 4)}, stationary gain {np.round(oc.dlqr(A, B, Q, R)[0][0], 4)}")
assert abs(riccati.cost / exact - 1) < 1e-7

# Costates along the optimum and the gradient at arbitrary inputs.
us = np.random.default_rng(0).normal(size=(N, 1))
slope = oc.gradient(problem, us)
assert np.allclose(riccati.us, np.einsum("tij,tj->ti", riccati.K, riccati.xs[:-1]))
assert np.allclose(riccati.costates, np.einsum("tij,tj->ti", riccati.P, riccati.xs))
assert np.allclose(slope.us, us @ R + slope.costates[1:] @ B)
residual = np.abs(riccati.us @ R + riccati.costates[1:] @ B).max()
print(f"largest |R u + B' costate| at the optimum {residual:.1e}, at random inputs {np.abs(slope.us).max():.1e}")
assert residual < 1e-10

# A gradient method needs costates alone, and takes bounds.
cg = oc.solve(problem, method="cg").raise_if_failed()
bounded_problem = problem.replace(u_min=-2.5, u_max=2.5)
bounded = oc.solve(bounded_problem, method="lbfgs").raise_if_failed()
program = oc.to_cvxpy(bounded_problem)
exact_bounded = program.solve()
print(f"conjugate gradients: cost {cg.cost:.9f} after {cg.iterations} iterations")
print(f"|u| <= 2.5 N m: L-BFGS {bounded.cost:.9f} after {bounded.iterations} iterations, cvxpy {exact_bounded:.9f}")
assert abs(cg.cost / exact - 1) < 1e-7
assert abs(bounded.cost / exact_bounded - 1) < 1e-6
assert np.abs(bounded.us - program.var_dict["us"].value).max() < 1e-4

# Figure: solid without, dashed with the bound.
figure, axes = plt.subplots(3, 1, figsize=(7, 8), sharex=True, layout="constrained")
oc.plot.trajectory(riccati, dt=dt, ax=axes[:2])
oc.plot.costates(riccati, dt=dt, ax=axes[2])
time = dt * np.arange(N + 1)
for ax, values in ((axes[0], bounded.xs), (axes[2], bounded.costates)):
    ax.set_prop_cycle(None)
    ax.plot(time, values, "--")
axes[1].step(time, np.append(bounded.us, bounded.us[-1]), "C0--", where="post")
axes[0].legend(["angle [rad]", "rate [rad/s]", "the same, |u| <= 2.5 N m"])
axes[0].set_ylabel("state")
axes[1].legend(["torque", "torque, |u| <= 2.5 N m"])
axes[1].set_ylabel("torque [N m]")
axes[1].set_xlabel("")
axes[2].legend(["of angle [cost/rad]", "of rate [cost s/rad]"])
axes[2].set_ylabel("costate dJ/dx")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/01_lqr_costates.png", dpi=120)
