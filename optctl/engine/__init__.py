"""A problem's functions as graphs and tapes, and the gradient engine that runs them: one call for a whole horizon."""
