"""next_ray inside other people's trainers."""
