"""Rollout: vLLM engines that sample completions under versioned adapters."""
