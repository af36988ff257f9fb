r"""Two adjoints: the gradient of what was computed tends to that of the true solution, at the order of the scheme.

Predators and prey (Lotka and Volterra), z = (prey, predators), p = (a, b, c, d), over T = 5:

    z_1' = a z_1 - b z_1 z_2,   z_2' = d z_1 z_2 - c z_2,   z(0) = (1, 1),   L = 1/2 |z(T) - (1, 1)|^2.

A scheme of order q with step h computes its own L_h. The discrete adjoint is dL_h/dp, to rounding, whatever h is; it
misses dL/dp, which the adjoint equation gives under tight error control, by O(h^q): a scheme differentiated is the same
scheme for the sensitivity equations. Its costates follow another Runge-Kutta scheme for the adjoint equation (Hager
2000, Runge-Kutta methods in optimal control and the transformed adjoint system, Numerische Mathematik 87).

Theory: docs/two-adjoints.md.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

p, z0, ts = np.array([1.5, 1.0, 3.0, 1.0]), np.array([1.0, 1.0]), np.array([0.0, 5.0])
prey = oc.ODE(lambda z, t, p: [p[0] * z[0] - p[1] * z[0] * z[1], p[3] * z[0] * z[1] - p[2] * z[1]])


def loss(zs):
    return 0.5 * ((zs[-1] - 1.0) ** 2).sum()


# The true gradient: two modes, two pairs, tight tolerances; they agree to rounding.
tight = {"rtol": 1e-12, "atol": 1e-13, "max_steps": 4096}
true = oc.ode_gradient(prey, loss, z0, ts, p, mode="continuous", method="dopri8", **tight).params
other = oc.ode_gradient(prey, loss, z0, ts, p, mode="forward", **tight).params
agreement = np.linalg.norm(true - other) / np.linalg.norm(true)
print("dL/dp", np.asarray(true), f"agrees with forward sensitivities to {agreement:.1e}")
assert agreement < 1e-9

# The discrete gradient: exact for its own loss, wrong by O(h^q) for the true one.
steps = 0.1 / 2.0 ** np.arange(7)
errors = {}
for method in ("euler", "midpoint", "rk4"):
    slopes = [oc.ode_gradient(prey, loss, z0, ts, p, method=method, dt=dt).params for dt in steps]
    errors[method] = np.linalg.norm(np.array(slopes) - true, axis=1) / np.linalg.norm(true)

    def value(p, method=method):
        return oc.ode_gradient(prey, loss, z0, ts, p, method=method, dt=steps[0]).value

    d = np.array([1.0, -1.0, 2.0, 1.0])
    quotient = (8 * (value(p + 1e-4 * d) - value(p - 1e-4 * d)) - value(p + 2e-4 * d) + value(p - 2e-4 * d)) / 12e-4
    gap = abs(slopes[0] @ d / quotient - 1)
    print(f"{method:<9} at h = {steps[0]}: off the true gradient by {errors[method][0]:.1e}, off its own by {gap:.1e}")
    assert gap < 1e-8

print(f"{'step':>10}" + "".join(f"{method:>18}" for method in errors) + "    relative error, observed order")
observed = {method: np.log2(error[:-1] / error[1:]) for method, error in errors.items()}
for k, h in enumerate(steps):
    row = (f"{error[k]:.1e} {observed[m][k - 1] if k else np.nan:6.2f}" for m, error in errors.items())
    print(f"{h:10.6f}" + "".join(f"{cell:>18}" for cell in row))
for method, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
    assert abs(observed[method][-2:] - order).max() < 0.1

# Figure.
figure, ax = plt.subplots(figsize=(7, 4.8), layout="constrained")
for (method, error), order, marker in zip(errors.items(), (1, 2, 4), "os^", strict=True):
    (line,) = ax.loglog(steps, error, marker, label=f"{method}, order {order}")
    ax.loglog(steps, error[-1] * (steps / steps[-1]) ** order, "--", color=line.get_color(), linewidth=1)
    ax.annotate(f"slope {order}", (steps[4], error[4]), (8, -12), textcoords="offset points", color=line.get_color())
ax.set(xlabel="step length h [s]", ylabel="relative error of the discrete gradient [1]")
ax.set_title("Discrete against continuous adjoint, Lotka-Volterra")
ax.grid(True, which="major", alpha=0.3)
ax.legend(loc="lower right")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/10_two_adjoints.png", dpi=120)
figure.savefig(Path(__file__).parents[1] / "docs/images/two_adjoints.png", dpi=120)
