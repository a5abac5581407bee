"""`python -m next_ray.plan JOB.yaml --gpus 8xH100`: memory, time, bottleneck, cost and the best split, before anything is rented."""

import sys

from next_ray.commands.plan import main

if __name__ == "__main__":
    sys.exit(main())
