"""A system under feedback: x_{t+1} = f(x_t, policy(x_t, t, params), t), free in the policy's parameters."""

from typing import Any, ClassVar

import numpy as np

from optctl._record import record
from optctl._validate import check_shape, check_tree, result_shape, returned
from optctl.dynamics.base import AbstractDynamics, Labels
from optctl.dynamics.stage import POLICY, stage_function


@record()
class ClosedLoop(AbstractDynamics):
    """Dynamics whose inputs a policy chooses; `params` are the policy's parameters and `us` is empty, (N, 0).

    Args:
        dynamics: the plant; its `step` must be JAX code.
        policy: `policy(x)`, `policy(x, t)` or `policy(x, t, params)`, returns u, shape (nu,).
        plant_params: the plant's own parameters, held fixed.

    Raises:
        ValueError: for a plant without a JAX step, or (at first use) a policy of the wrong width.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> plant = oc.LinearDynamics(A=[[1.0]], B=[[1.0]])
        >>> loop = oc.ClosedLoop(plant, lambda x, t, K: K @ x)
        >>> print(loop.rollout([1.0], jnp.zeros((2, 0)), params=jnp.array([[-0.5]]))[:, 0])
        [1.   0.5  0.25]
    """

    nu: ClassVar[int] = 0  # type: ignore[misc]

    dynamics: Any
    policy: Any
    plant_params: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, AbstractDynamics) or not self.dynamics.has_jax_step:
            raise ValueError(
                f"`dynamics` is a {type(self.dynamics).__name__}; a closed loop is differentiated through its step and"
                " needs a kind with a JAX step: Dynamics, LinearDynamics or discretize(...)."
            )
        object.__setattr__(self, "policy", stage_function(self.policy, "policy", POLICY, least=1, vector=True))
        object.__setattr__(self, "plant_params", check_tree(self.plant_params, "plant_params"))

    @property
    def nx(self) -> Any:  # type: ignore[override]
        """Number of states, the plant's."""
        return self.dynamics.nx

    @property
    def horizon(self) -> Any:  # type: ignore[override]
        """Number of stages if the plant fixes it."""
        return self.dynamics.horizon

    @property
    def labels(self) -> Labels | None:
        """The plant's labels."""
        return self.dynamics.labels

    def input(self, x: Any, t: Any, params: Any) -> Any:
        """Return the policy's input, shape (nu,)."""
        return self.policy(x, t, params)

    def step(self, x: Any, u: Any, t: Any, params: Any) -> Any:
        """Return f(x, policy(x, t, params), t, plant_params); `u` is empty."""
        return self.dynamics.step(x, self.input(x, t, params), t, self.plant_params)

    def check_data(self, x0: Any, us: Any, params: Any) -> None:
        """Raise ValueError for a policy that does not return (nu,), then as every kind."""
        nu = self.dynamics.nu
        check_shape(x0, "x0", (self.nx,))
        got = result_shape(self.input, "policy", x0, np.asarray(max(us.shape[0] - 1, 0)), params)
        shape = getattr(got, "shape", None)
        if shape is None or len(shape) != 1 or (nu is not None and shape != (nu,)):
            raise ValueError(
                f"`policy` returns {returned(got)}; expected ({'nu' if nu is None else nu},), the input u."
            )
        super().check_data(x0, us, params)

    def _forms_jacobians(self, xs: Any, us: Any) -> bool:
        """Never: a Jacobian would push nx tangents through the policy, a costate passes it once."""
        return False
