"""`python -m next_ray.export`: a checkpoint of a run as a folder that transformers, PEFT and vLLM load."""

import sys

from next_ray.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
