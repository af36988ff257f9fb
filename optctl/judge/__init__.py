"""The second computation: values by NumPy from the functions themselves, which judges tapes, kernels and solutions."""
