"""Extrapolation and merging methods behind one protocol (`plan.Extrapolator`); `registry.make` builds them by name."""
