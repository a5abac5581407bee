"""`python -m next_ray.evaluate`: how good are these models on these problems?"""

import sys

from next_ray.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
