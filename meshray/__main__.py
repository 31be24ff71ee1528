"""``python -m meshray`` is ``meshray``."""

import sys

from meshray.cli.entry import main

sys.exit(main())
