"""Performance claims, each measured by a command of its own."""
