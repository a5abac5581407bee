"""`python -m next_ray.report`: runs as one HTML page."""

import sys

from next_ray.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
