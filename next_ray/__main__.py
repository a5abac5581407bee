"""`python -m next_ray`: what `next-ray` is where it is not installed."""

import sys

from next_ray.commands.main import main

if __name__ == "__main__":
    sys.exit(main(program="python -m next_ray"))
