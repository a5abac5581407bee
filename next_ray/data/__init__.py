"""Prompts: where they come from, which are held out, in which order they come, and how they are written for a model."""
