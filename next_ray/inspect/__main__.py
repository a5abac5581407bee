"""`python -m next_ray.inspect`: are these checkpoints worth extrapolating?"""

import sys

from next_ray.commands.inspect import main

if __name__ == "__main__":
    sys.exit(main())
