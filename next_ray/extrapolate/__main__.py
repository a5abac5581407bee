"""`python -m next_ray.extrapolate`: checkpoints in, extrapolated models out."""

import sys

from next_ray.commands.extrapolate import main

if __name__ == "__main__":
    sys.exit(main())
