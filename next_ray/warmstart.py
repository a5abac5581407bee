"""`python -m next_ray.warmstart`: supervised fine-tuning before a run."""

import sys

from next_ray.commands.warmstart import main

if __name__ == "__main__":
    sys.exit(main())
