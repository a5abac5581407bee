"""Judging completions in disposable processes."""
