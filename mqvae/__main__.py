"""`python -m mqvae`."""

import sys

from mqvae.cli import main

sys.exit(main())
