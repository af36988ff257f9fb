r"""Second derivatives along a direction: the tangent of the costate recursion.

With dx the tangent rollout along (dx_0, du, dp), the second-order costate mu = d costates obeys

    mu_t = f_x' mu_{t+1} + d(dl/dx_t) + (d f_x)' costates_{t+1},

and dJ/du_t moves by f_u' mu_{t+1} + d(dl/du_t) + (d f_u)' costates_{t+1}. That is the forward derivative of the
gradient engine, taken as a whole: rollout -> tangent rollout, costates -> second-order costates. It costs about
twice a gradient and never forms the Hessian.

Reference: Griewank and Walther (2008), Evaluating Derivatives, section 5.3.
"""

from typing import Any

import jax
import numpy as np

from optctl._validate import as_float, check_like, check_tree
from optctl.adjoint.gradient import Gradient, arguments, product
from optctl.problem import Problem, once


def hessian_vector_product(
    problem: Problem,
    us: Any,
    *,
    dus: Any = None,
    x0: Any = None,
    params: Any = None,
    dx0: Any = None,
    dparams: Any = None,
) -> Gradient:
    """Return the derivative of every field of `gradient` along (dus, dx0, dparams).

    Args:
        problem: the problem, with dynamics that have second derivatives.
        us: (N, nu) inputs.
        dus: (N, nu) direction in the inputs; None is zero, as for the other directions.
        x0: (nx,) initial state; None takes the problem's.
        params: parameters; None takes the problem's.
        dx0: (nx,) direction in x_0.
        dparams: direction in the parameters, like `params`.

    Returns:
        A `Gradient` whose us, x0 and params are the Hessian times the direction; xs the tangent rollout,
        costates the second-order costates, cost the directional derivative.

    Raises:
        ValueError: for wrong shapes, or dynamics without second derivatives.

    Example:
        >>> import jax.numpy as jnp
        >>> import optctl as oc
        >>> problem = oc.Problem(
        ...     oc.LinearDynamics(A=[[2.0]], B=[[1.0]]),
        ...     oc.costs.Quadratic(Q=[[0.0]], R=[[1.0]]),
        ...     oc.costs.TerminalQuadratic(Q=[[1.0]]),
        ...     horizon=2,
        ...     x0=[1.0],
        ... )
        >>> us = jnp.zeros((2, 1))
        >>> print(oc.hessian_vector_product(problem, us, dus=us.at[0].set(1.0)).us[:, 0])
        [5. 2.]

    References:
        Griewank and Walther (2008), Evaluating Derivatives, section 5.3.
    """
    us, x0, params = arguments(problem, us, x0, params)
    require_second_derivatives(problem)
    at = (us, x0, params)
    given = (dus, dx0, dparams)
    still = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), at)
    along = [zero if d is None else d for zero, d in zip(still, given, strict=True)]
    for k, (name, point) in enumerate(zip(("dus", "dx0", "dparams"), at, strict=True)):
        if along[k] is not None:
            along[k] = check_tree(along[k], name) if name == "dparams" else as_float(along[k], name)
        if jax.tree.structure(along[k]) != jax.tree.structure(point):  # type: ignore[operator]
            raise ValueError(f"`{name}` differs in structure from what it is a direction in.")
        check_like(along[k], name, point)
    once((problem, at), lambda: problem.check_shapes(x0, us, params))
    return product(problem, *at, *along)


def require_second_derivatives(problem: Problem) -> None:
    """Raise if the dynamics cannot be differentiated twice."""
    if not problem.dynamics.twice_differentiable:
        raise ValueError(
            f"{type(problem.dynamics).__name__} has no second derivatives; use method='lbfgs' or 'gradient_descent',"
            " which need the gradient only."
        )
