"""`python -m next_ray.dashboard`: set up Prometheus and Grafana for runs."""

import sys

from next_ray.commands.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
