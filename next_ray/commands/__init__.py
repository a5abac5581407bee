"""What the entry points beside `next_ray.run` do."""
