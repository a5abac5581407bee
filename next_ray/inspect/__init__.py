"""Is a trajectory of checkpoints worth extrapolating? Measures, back test, verdict; `python -m next_ray.inspect`."""
