"""Ray, and only here: wrap the stages as actors, place them, fan out, meter."""
