"""RLVR with LoRA that predicts where the weights are going and jumps there when a gate allows it."""

__version__ = "0.1.0"
