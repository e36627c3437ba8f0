"""`python -m skywork_trainer`: the command `skywork`, for who has the interpreter but not its scripts on PATH."""

import sys

from skywork_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
