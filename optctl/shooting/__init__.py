"""Many states free: multiple shooting by a primal-dual interior point method, its kernel and its derivatives.

rows            all constraints but the dynamics, stacked, and what a barrier makes of them
expansion       the problem's functions and their derivatives along a trajectory
primal_dual     the unknowns, Newton's step as one linear-quadratic problem
barrier         one iteration: measure, lower the barrier, step, filter line search
feasibility     the phase that lowers the violation where the line search is stuck
interior_point  the method: first state, iterations, result
native          the same iterations by the compiled kernel
certificate     the first-order conditions at the end
sensitivity     the derivative of a solution
lift            free parameters as states that do not move
"""
