r"""Park a car backwards between two others: obstacles, steering limits, free final time.

The car is a bicycle model, x = (x, y, heading, speed). Time is scaled, so that the duration T is one more state that
does not move, with a free initial value; each step takes T/N seconds:

    minimize  T + int (a^2 + steering^2) / 20     subject to   no disc of the car meets a disc of an obstacle.

Four discs cover the car, six the two parked ones; g = (r + R)^2 - |p - q|^2 <= 0 for every pair.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

N, WHEELBASE, LENGTH, WIDTH = 60, 2.5, 4.2, 1.7
ALONG = np.linspace(-0.6, 3.1, 4)  # centers of the car's discs along its axis, from the rear axle [m]
RADIUS, OTHER = 0.95, 0.95
PARKED = np.array([[x, 0.0] for x in (-6.6, -5.4, -4.2, 4.2, 5.4, 6.6)])  # discs of the parked cars [m]
START, GOAL = np.array([4.0, 2.6, 0.0, 0.0]), np.array([-1.3, 0.0, 0.0, 0.0])
car = oc.models.KinematicCar(wheelbase=WHEELBASE)


def scaled(z, u):
    """Return the rates of (x, y, heading, speed, T) in scaled time."""
    return jnp.append(z[4] * car(z[:4], u), 0.0)


def discs(z):
    """Return the centers of the car's discs, (4, 2)."""
    axis = jnp.array([jnp.cos(z[2]), jnp.sin(z[2])])
    return z[:2] + ALONG[:, None] * axis


def collision(z, u):
    apart = discs(z)[:, None] - PARKED
    return (RADIUS + OTHER) ** 2 - jnp.sum(apart**2, axis=2).ravel()


dynamics = oc.discretize(scaled, 1.0 / N, nx=5, nu=2)
problem = oc.Problem(
    dynamics, stage_cost=lambda z, u: z[4] / N * (1 + u @ u / 20), horizon=N,
    x0_min=[*START, 1.0], x0_max=[*START, 30.0], u_min=[-1.5, -0.6], u_max=[1.5, 0.6],
    x_min=[-np.inf, -1.0, -np.inf, -2.5, 0.0], x_max=[np.inf, 4.0, np.inf, 2.5, np.inf],
    path_inequality=collision, terminal_equality=lambda z: z[:4] - GOAL,
)  # fmt: skip
# A rough guess: straight back at 1 m/s, drifting sideways through the parked car, which no car can do.
s = np.linspace(0, 1, N + 1)
xs = np.column_stack([START + np.outer(s, GOAL - START), 0 * s + 6.0])
xs[:, 3] = -1.0
sol = oc.solve(problem, np.zeros((N, 2)), xs=xs).raise_if_failed()
print(sol)
print(f"parked within {sol.x0[4]:.2f} s; largest speed {np.abs(sol.xs[:, 3]).max():.2f} m/s")
nearest = min(float(jnp.max(collision(z, None))) for z in sol.xs)
clear = max(float(jnp.max(collision(z, None))) for z in sol.xs[:-1])
print(f"closest approach of two discs: {np.sqrt((RADIUS + OTHER) ** 2 - clear) - RADIUS - OTHER:.1e} m")
assert clear < 1e-6
assert np.abs(sol.xs[-1, :4] - GOAL).max() < 1e-6

figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained", width_ratios=(2, 1))


def draw(ax, z, **style):
    """Draw the car's outline."""
    corners = np.array([[-1.0, -1], [3.5, -1], [3.5, 1], [-1.0, 1], [-1.0, -1]]) * [LENGTH / 4.5, WIDTH / 2]
    c, s = np.cos(z[2]), np.sin(z[2])
    ax.plot(*(corners @ np.array([[c, s], [-s, c]]) + z[:2]).T, **style)


for center in PARKED:
    axes[0].add_patch(plt.Circle(center, OTHER, color="gray", alpha=0.5))
for t in range(0, N + 1, 4):
    draw(axes[0], np.asarray(sol.xs[t]), color=plt.cm.viridis(t / N), linewidth=1)
axes[0].plot(sol.xs[:, 0], sol.xs[:, 1], "k.-", markersize=3, linewidth=0.5)
axes[0].set(xlabel="x [m]", ylabel="y [m]", aspect="equal", title=f"parked in {sol.x0[4]:.2f} s")
time = np.arange(N) * float(sol.x0[4]) / N
axes[1].step(time, sol.us[:, 0], where="post", label="acceleration [m/s^2]")
axes[1].step(time, sol.us[:, 1], where="post", label="steering [rad]")
axes[1].plot(time, sol.xs[:-1, 3], label="speed [m/s]")
axes[1].set(xlabel="time [s]", ylabel="input, speed")
axes[1].legend(fontsize="small")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/16_parking.png", dpi=120)
