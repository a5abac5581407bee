"""From scored completions to a new adapter: advantages, batches, loss and the DeepSpeed learner."""
