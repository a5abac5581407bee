"""Runs that are hurt on purpose, and the books that must balance afterwards: `make chaos` (docs/reliability.md)."""
