r"""Fly a quadrotor through a narrow gap: 12 states, four rotors with limits, two pillars.

    minimize  sum_t dt ( |u_t - hover|^2 + |rates|^2 / 100 )    from one side of a wall to the other within 1.6 s,

through the gap between two round pillars. The gap is 0.36 m wide and the quadrotor, an ellipsoid of 0.28 m by 0.28 m by
0.06 m half-axes, is wider: it must bank. With the pillars along z at (0, +-c) and n = R(roll, pitch, yaw)'e the
direction to a pillar in the body's frame, its half width towards the pillar is sqrt(n' diag(a^2) n), and

    distance from the axis of the pillar - pillar's radius - half width >= 0.
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optctl as oc

N, dt = 40, 0.04
HALF_AXES = np.array([0.28, 0.28, 0.06])  # of the quadrotor [m]
PILLARS, RADIUS = np.array([[0.0, 0.48], [0.0, -0.48]]), 0.3  # gap 2 (0.48 - 0.3) = 0.36 m
model = oc.models.Quadrotor()
hover = model.m * model.g / 4
START, GOAL = np.zeros(12), np.zeros(12)
START[:3], GOAL[:3] = [-1.5, -0.4, 1.0], [1.5, 0.4, 1.0]


def rotation(angles):
    """Return the body's axes in space, as columns."""
    (sr, sp, sy), (cr, cp, cy) = jnp.sin(angles), jnp.cos(angles)
    return jnp.array([
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ])  # fmt: skip


def clearance(x):
    """Return the distances between the quadrotor and the pillars."""
    away = x[:2] - PILLARS
    distance = jnp.sqrt(jnp.sum(away**2, axis=1) + 1e-9)
    e = jnp.concatenate([away / distance[:, None], jnp.zeros((2, 1))], axis=1)
    half = jnp.sqrt(jnp.sum((e @ rotation(x[6:9]) * HALF_AXES) ** 2, axis=1))
    return distance - RADIUS - half


tilt = np.array([np.inf] * 6 + [1.4, 1.2, 1.5] + [12.0] * 3)
problem = oc.Problem(
    oc.discretize(model, dt), stage_cost=lambda x, u: dt * (jnp.sum((u - hover) ** 2) + x[9:] @ x[9:] / 100),
    horizon=N, x0=START, u_min=0.0, u_max=4.0, x_min=-tilt, x_max=tilt,
    path_inequality=lambda x, u: -clearance(x), terminal_equality=lambda x: x - GOAL,
)  # fmt: skip
sol = oc.solve(problem, np.full((N, 4), hover), xs=np.linspace(START, GOAL, N + 1)).raise_if_failed()
print(sol)
gaps = np.array([clearance(x) for x in sol.xs[:-1]])
bank = np.degrees(np.abs(sol.xs[:, 6]).max())
print(f"least clearance {gaps.min():.1e} m, bank up to {bank:.0f} degrees, thrust up to {sol.us.max():.2f} N of 4 N")
assert gaps.min() > -1e-6
assert bank > 30

figure = plt.figure(figsize=(12, 4.5), layout="constrained")
top, front = figure.add_subplot(1, 3, 1), figure.add_subplot(1, 3, 2)
thrust = figure.add_subplot(1, 3, 3)
circle = np.linspace(0, 2 * np.pi, 40)
rim = np.stack([np.cos(circle), np.sin(circle), 0 * circle]) * HALF_AXES[:, None]
for center in PILLARS:
    top.add_patch(plt.Circle(center, RADIUS, color="gray"))
for t in range(0, N + 1, 2):
    body = np.asarray(rotation(sol.xs[t, 6:9])) @ rim + np.asarray(sol.xs[t, :3])[:, None]
    color = plt.cm.viridis(t / N)
    top.plot(body[0], body[1], color=color, linewidth=1)
    front.plot(body[1], body[2], color=color, linewidth=1)
for side in (-1, 1):
    front.axvspan(side * 0.18, side * 0.78, color="gray", alpha=0.3)
top.set(xlabel="x [m]", ylabel="y [m]", aspect="equal", title="from above")
front.set(xlabel="y [m]", ylabel="z [m]", aspect="equal", title="along x: it banks in the gap")
for i in range(4):
    thrust.step(np.arange(N) * dt, sol.us[:, i], where="post", label=f"rotor {i + 1}")
thrust.axhline(4.0, color="k", linestyle=":", linewidth=1)
thrust.set(xlabel="time [s]", ylabel="thrust [N]")
thrust.legend(fontsize="small")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/17_quadrotor_gap.png", dpi=120)
