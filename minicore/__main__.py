"""``python -m minicore`` is the command ``minicore``."""

import sys

from minicore.cli import main

sys.exit(main())
