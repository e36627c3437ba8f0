"""`skywork`, as the tests start it: by module, so that no installed script is needed."""

import sys

from skywork_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
