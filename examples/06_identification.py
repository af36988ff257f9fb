r"""Identification: length, damping and initial state of a pendulum from noisy angles.

A pendulum of mass m = 1 kg swings freely; its angle q is measured 200 times, every 25 ms, with noise v ~ N(0, s^2):

    m l^2 q'' = -b q' - m g l sin q,    x = (q, q'),    y_t = q_t + v_t.

Length l and damping b (params) and the initial state x_0 are free, and there are no inputs; minimize

    sum_{t<=N} 1/2 ((q_t - y_t) / s)^2    subject to x_{t+1} = f(x_t, params), by RK4.

One forward simulation and one costate sweep give the gradient in all of them: dJ/dx_0 = costates_0 and
dJ/dparams = sum_t (df/dparams)' costates_{t+1}. SciPy fits the same data by Levenberg-Marquardt, with its own
integrator and difference quotients; its Jacobian gives the standard errors.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

import optctl as oc

G, DT, N, S = 9.81, 0.025, 199, 0.05  # [m/s^2], [s], steps, standard deviation [rad]
TRUTH = np.array([0.7, 0.15, 1.2, -0.5])  # l [m], b [N m s], q_0 [rad], q'_0 [rad/s]
TIMES = DT * np.arange(N + 1)


def pendulum(x, u, t, params):
    length, damping = params["length"], params["damping"]
    return [x[1], -damping / length**2 * x[1] - G / length * jnp.sin(x[0])]


def simulate(z):
    """Return the angles for z = (l, b, q_0, q'_0) by SciPy's integrator."""

    def ode(t, x):
        return [x[1], -z[1] / z[0] ** 2 * x[1] - G / z[0] * np.sin(x[0])]

    return solve_ivp(ode, (0.0, TIMES[-1]), z[2:], "DOP853", t_eval=TIMES, rtol=1e-10, atol=1e-10).y[0]


ys = simulate(TRUTH) + S * np.random.default_rng(0).normal(size=N + 1)

# The angle is weighted by 1/s^2, the rate by zero.
measured = np.column_stack([ys, np.zeros(N + 1)])
weight = np.diag([1 / S**2, 0.0])
problem = oc.Problem(
    oc.discretize(pendulum, DT, nx=2, nu=0),
    oc.costs.Tracking(weight, np.zeros((0, 0)), x_ref=measured),
    oc.costs.TerminalQuadratic(weight, x_ref=measured[-1]),
    horizon=N,
)
guess = {"length": 1.0, "damping": 0.0}
x0 = np.array([ys[0], 0.0])
print(oc.check_gradient(problem, None, x0=x0, params=guess))

sol = oc.solve(problem, x0=x0, params=guess, free=("x0", "params")).raise_if_failed()
fit = least_squares(lambda z: (simulate(z) - ys) / S, [1.0, 0.0, *x0], method="lm", xtol=1e-12, ftol=1e-12)
found = np.array([sol.params["length"], sol.params["damping"], *sol.x0])
errors = np.sqrt(np.diag(np.linalg.inv(fit.jac.T @ fit.jac)))
print(f"{sol.method}: cost {sol.cost:.6f} after {sol.iterations} iterations; SciPy: {fit.cost:.6f}")
print(f"{'':<16} {'true':>9} {'optctl':>9} {'SciPy':>9} {'std error':>9}")
names = ("length [m]", "damping [N m s]", "angle [rad]", "rate [rad/s]")
for row in zip(names, TRUTH, found, fit.x, errors, strict=True):
    print("{:<16} {:9.5f} {:9.5f} {:9.5f} {:9.5f}".format(*row))
assert abs(sol.cost / fit.cost - 1) < 1e-5
assert (np.abs(found - fit.x) < 0.02 * errors).all()
assert (np.abs(found - TRUTH) < 3 * errors).all()

# Figure.
figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
first = oc.gradient(problem, None, x0=x0, params=guess)
oc.plot.smoothing(ys, sol.xs, times=TIMES, labels=("", "angle [rad]"), ax=axes[0])
axes[0].plot(TIMES, first.xs[:, 0], "--", color="0.6", label="first guess")
axes[0].get_lines()[1].set_label("identified")
axes[0].set_ylim(-1.4, 1.8)
axes[0].legend(loc="upper right", ncols=3)
oc.plot.costates(sol, problem, ax=axes[1])
axes[1].legend(["of angle [cost/rad]", "of rate [cost s/rad]"], loc="upper right")
axes[1].set_ylabel("costate dJ/dx")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/06_identification.png", dpi=120)
