"""Ready models: ordinary differential equations dx/dt = f(x, u) with sizes, names and units.

Pass one to `discretize`. Masses and lengths are data: other numbers do not recompile, and `jax.grad` reaches them.
Angles of pendulums are measured from hanging straight down, counter-clockwise; upright is pi.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from optctl._record import record
from optctl._validate import as_float
from optctl.dynamics.base import Labels

__all__ = [
    "Acrobot",
    "CartPole",
    "DoubleIntegrator",
    "KinematicCar",
    "Pendulum",
    "PlanarQuadrotor",
    "Quadrotor",
]


class Model:
    """What the models have in common: their numbers are numbers."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            as_float(getattr(self, field.name), field.name)


@record()
class DoubleIntegrator(Model):
    """A mass on rails: m p'' = u.

    Attributes:
        m: mass [kg].

    Example:
        >>> import optctl as oc
        >>> oc.discretize(oc.models.DoubleIntegrator(), 0.1, "zoh").A.shape
        (2, 2)
    """

    nx: ClassVar[int] = 2
    nu: ClassVar[int] = 1
    labels: ClassVar[Labels] = Labels(("position [m]", "velocity [m/s]"), ("force [N]",))

    m: Any = 1.0

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        return jnp.array([x[1], u[0] / self.m])


@record()
class Pendulum(Model):
    """A damped pendulum with torque: m l^2 q'' = u - b q' - m g l sin q; q = 0 hangs down.

    Attributes:
        m: mass [kg].
        l: length [m].
        b: damping [N m s].
        g: gravity [m/s^2].
    """

    nx: ClassVar[int] = 2
    nu: ClassVar[int] = 1
    labels: ClassVar[Labels] = Labels(("angle [rad]", "angular velocity [rad/s]"), ("torque [N m]",))

    m: Any = 1.0
    l: Any = 1.0
    b: Any = 0.0
    g: Any = 9.81

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        torque = u[0] - self.b * x[1] - self.m * self.g * self.l * jnp.sin(x[0])
        return jnp.array([x[1], torque / (self.m * self.l**2)])


@record()
class CartPole(Model):
    """A cart with a pole of point mass, force on the cart; x = (position, angle, their rates), pole down at angle 0.

        p'' = (u + mp sin q (l q'^2 + g cos q)) / (mc + mp sin^2 q)
        q'' = -(u cos q + mp l q'^2 sin q cos q + (mc + mp) g sin q) / (l (mc + mp sin^2 q))

    Attributes:
        mc: mass of the cart [kg].
        mp: mass of the pole's tip [kg].
        l: length of the pole [m].
        g: gravity [m/s^2].

    References:
        Kelly (2017), An introduction to trajectory optimization, SIAM Review 59, section 6.
    """

    nx: ClassVar[int] = 4
    nu: ClassVar[int] = 1
    labels: ClassVar[Labels] = Labels(
        ("cart position [m]", "pole angle [rad]", "cart velocity [m/s]", "pole rate [rad/s]"), ("force [N]",)
    )

    mc: Any = 1.0
    mp: Any = 0.3
    l: Any = 0.5
    g: Any = 9.81

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        _, q, v, w = x
        s, c = jnp.sin(q), jnp.cos(q)
        effective = self.mc + self.mp * s**2
        acceleration = (u[0] + self.mp * s * (self.l * w**2 + self.g * c)) / effective
        swing = u[0] * c + self.mp * self.l * w**2 * s * c + (self.mc + self.mp) * self.g * s
        return jnp.array([v, w, acceleration, -swing / (self.l * effective)])


@record()
class Acrobot(Model):
    """Two links, torque at the second joint; x = (q1, q2, rates), q1 = 0 hangs down, q2 relative to the first link.

    Attributes:
        m1: mass of link 1 [kg].
        m2: mass of link 2 [kg].
        l1: length of link 1 [m].
        lc1: distance of the center of mass of link 1 [m].
        lc2: distance of the center of mass of link 2 [m].
        I1: moment of inertia of link 1 [kg m^2].
        I2: moment of inertia of link 2 [kg m^2].
        g: gravity [m/s^2].

    References:
        Sutton and Barto (2018), Reinforcement Learning, section 11.3 of the first edition (with the full
        Coriolis term, "book" variant).
    """

    nx: ClassVar[int] = 4
    nu: ClassVar[int] = 1
    labels: ClassVar[Labels] = Labels(
        ("angle 1 [rad]", "angle 2 [rad]", "rate 1 [rad/s]", "rate 2 [rad/s]"), ("torque [N m]",)
    )

    m1: Any = 1.0
    m2: Any = 1.0
    l1: Any = 1.0
    lc1: Any = 0.5
    lc2: Any = 0.5
    I1: Any = 1.0
    I2: Any = 1.0
    g: Any = 9.8

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        q1, q2, w1, w2 = x
        coupling = self.m2 * self.l1 * self.lc2
        d1 = self.m1 * self.lc1**2 + self.m2 * (self.l1**2 + self.lc2**2) + 2 * coupling * jnp.cos(q2)
        d1 = d1 + self.I1 + self.I2
        d2 = self.m2 * self.lc2**2 + coupling * jnp.cos(q2) + self.I2
        phi2 = self.m2 * self.lc2 * self.g * jnp.sin(q1 + q2)
        phi1 = -coupling * w2**2 * jnp.sin(q2) - 2 * coupling * w2 * w1 * jnp.sin(q2)
        phi1 = phi1 + (self.m1 * self.lc1 + self.m2 * self.l1) * self.g * jnp.sin(q1) + phi2
        a2 = u[0] + d2 / d1 * phi1 - coupling * w1**2 * jnp.sin(q2) - phi2
        a2 = a2 / (self.m2 * self.lc2**2 + self.I2 - d2**2 / d1)
        a1 = -(d2 * a2 + phi1) / d1
        return jnp.array([w1, w2, a1, a2])


@record()
class PlanarQuadrotor(Model):
    """A quadrotor in a vertical plane; x = (horizontal, height, pitch, rates), inputs are the two rotor thrusts.

    Attributes:
        m: mass [kg].
        l: arm from the center to a rotor [m].
        I: moment of inertia [kg m^2].
        g: gravity [m/s^2].
    """

    nx: ClassVar[int] = 6
    nu: ClassVar[int] = 2
    labels: ClassVar[Labels] = Labels(
        (
            "horizontal [m]",
            "height [m]",
            "pitch [rad]",
            "horizontal velocity [m/s]",
            "climb rate [m/s]",
            "rate [rad/s]",
        ),
        ("right thrust [N]", "left thrust [N]"),
    )

    m: Any = 0.5
    l: Any = 0.17
    I: Any = 0.005
    g: Any = 9.81

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        pitch = x[2]
        thrust = u[0] + u[1]
        acceleration = jnp.array(
            [
                -thrust * jnp.sin(pitch) / self.m,
                thrust * jnp.cos(pitch) / self.m - self.g,
                self.l * (u[0] - u[1]) / self.I,
            ]
        )
        return jnp.concatenate([x[3:], acceleration])


@record()
class Quadrotor(Model):
    """A quadrotor in space: position, velocity, roll-pitch-yaw, body rates; inputs are the four rotor thrusts.

    Rotors 1 and 3 lie on the body's x axis (front, back), 2 and 4 on its y axis (left, right) and turn the other
    way. Euler angles are singular at pitch = +-pi/2.

    Attributes:
        m: mass [kg].
        l: arm [m].
        Ix: moment of inertia about the body's x axis [kg m^2].
        Iy: about y [kg m^2].
        Iz: about z [kg m^2].
        drag: yaw torque per thrust [m].
        g: gravity [m/s^2].
    """

    nx: ClassVar[int] = 12
    nu: ClassVar[int] = 4
    labels: ClassVar[Labels] = Labels(
        (
            *("x [m]", "y [m]", "z [m]", "vx [m/s]", "vy [m/s]", "vz [m/s]"),
            *("roll [rad]", "pitch [rad]", "yaw [rad]", "p [rad/s]", "q [rad/s]", "r [rad/s]"),
        ),
        ("thrust 1 [N]", "thrust 2 [N]", "thrust 3 [N]", "thrust 4 [N]"),
    )

    m: Any = 0.5
    l: Any = 0.17
    Ix: Any = 0.0023
    Iy: Any = 0.0023
    Iz: Any = 0.004
    drag: Any = 0.01
    g: Any = 9.81

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        velocity, angles, rates = x[3:6], x[6:9], x[9:12]
        sr, sp, sy = jnp.sin(angles)
        cr, cp, cy = jnp.cos(angles)
        up = jnp.array([cy * sp * cr + sy * sr, sy * sp * cr - cy * sr, cp * cr])
        acceleration = up * (jnp.sum(u) / self.m) - jnp.array([0.0, 0.0, 1.0]) * self.g
        p, q, r = rates
        turn = sr * q + cr * r
        angle_rates = jnp.array([p + sp / cp * turn, cr * q - sr * r, turn / cp])
        tx, ty = self.l * (u[1] - u[3]), self.l * (u[2] - u[0])
        tz = self.drag * (u[0] - u[1] + u[2] - u[3])
        body = jnp.array(
            [
                (tx - (self.Iz - self.Iy) * q * r) / self.Ix,
                (ty - (self.Ix - self.Iz) * p * r) / self.Iy,
                (tz - (self.Iy - self.Ix) * p * q) / self.Iz,
            ]
        )
        return jnp.concatenate([velocity, acceleration, angle_rates, body])


@record()
class KinematicCar(Model):
    """A car without slip (bicycle model); x = (x, y, heading, speed), inputs are acceleration and steering angle.

    Attributes:
        wheelbase: distance between the axles [m].
    """

    nx: ClassVar[int] = 4
    nu: ClassVar[int] = 2
    labels: ClassVar[Labels] = Labels(
        ("x [m]", "y [m]", "heading [rad]", "speed [m/s]"), ("acceleration [m/s^2]", "steering [rad]")
    )

    wheelbase: Any = 2.5

    def __call__(self, x: Any, u: Any) -> Any:
        """Return dx/dt."""
        heading, speed = x[2], x[3]
        turn = speed * jnp.tan(u[1]) / self.wheelbase
        return jnp.array([speed * jnp.cos(heading), speed * jnp.sin(heading), turn, u[0]])
