"""`python -m next_ray.serve`: a run's models behind an OpenAI-compatible address."""

import sys

from next_ray.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
