"""Reading anybody's checkpoints into a trajectory."""
