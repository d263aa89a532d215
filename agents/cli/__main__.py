"""`python -m journeyman.agents.cli`."""

import sys

from journeyman.agents.cli import main

sys.exit(main())
