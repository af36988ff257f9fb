r"""The brachistochrone: the fastest wire from (0, 10) m to (10, 5) m is a cycloid. Free final time, mesh refinement.

    x' = v sin a,  y' = -v cos a,  v' = g cos a,   minimize tf.

Bernoulli's answer: x = r (p - sin p), y = 10 - r (1 - cos p), tf = p_f sqrt(r/g). With inputs that move linearly within
each RK4 step the error of tf falls with the fourth power of the step.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq

import optctl as oc

G = 9.80665
p_end = brentq(lambda p: (p - np.sin(p)) / (1 - np.cos(p)) - 2.0, 1e-3, 2 * np.pi - 1e-3)
r = 5 / (1 - np.cos(p_end))
tf = p_end * np.sqrt(r / G)
print(f"cycloid: r = {r:.6f} m, tf = {tf:.12f} s")

sizes, errors = (8, 16, 32, 64), []
for N in sizes:
    known = oc.problems.brachistochrone(N)
    sol = known.solve(tolerance=1e-12).raise_if_failed()
    errors.append(abs(float(sol.cost) - tf))
    print(f"N = {N:3d}: tf = {sol.cost:.12f} s, error {errors[-1]:.1e}, {sol.iterations} iterations")
orders = np.log2(np.array(errors[:-1]) / errors[1:])
print(f"orders of convergence: {orders.round(2)}")
assert abs(tf - known.optimum) < 1e-12
assert errors[-1] < 1e-8
assert orders.min() > 3.5

# tf as a parameter gives the same, and its costate is the one of the state "tf".
other = oc.problems.brachistochrone(64, tf="params").solve(tolerance=1e-12).raise_if_failed()
print(f"tf as a parameter: {other.params:.12f} s")
assert abs(other.params - sol.cost) < 1e-9

p = np.linspace(0, p_end, 200)
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].plot(r * (p - np.sin(p)), 10 - r * (1 - np.cos(p)), label="cycloid")
axes[0].plot(sol.xs[::4, 0], sol.xs[::4, 1], "o", markersize=4, label="optctl, every fourth of 64 steps")
axes[0].set(xlabel="x [m]", ylabel="y [m]", aspect="equal")
axes[0].legend(fontsize="small")
t = np.arange(64) * float(sol.cost) / 64
axes[1].plot(np.linspace(0, tf, 200), p / 2, label="cycloid: p / 2")
axes[1].plot(t[::4], sol.us[::4, 0], "o", markersize=4, label="optctl")
axes[1].set(xlabel="time [s]", ylabel="angle of descent a [rad]")
axes[1].legend(fontsize="small")
axes[2].loglog(sizes, errors, "o-", label="error of tf")
axes[2].loglog(sizes, errors[0] * (sizes[0] / np.array(sizes, float)) ** 4, "k:", label="fourth order")
axes[2].set(xlabel="steps N", ylabel="|tf - cycloid's| [s]")
axes[2].legend(fontsize="small")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/18_brachistochrone.png", dpi=120)
