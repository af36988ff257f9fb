"""Feedback: neural policies and their training through the closed loop; deep networks by the same loop."""

from optctl.policies.closed_loop import closed_loop
from optctl.policies.mlp import MLP, mlp
from optctl.policies.train import TrainingResult, train, train_layers, train_policy

__all__ = ["MLP", "TrainingResult", "closed_loop", "mlp", "train", "train_layers", "train_policy"]
