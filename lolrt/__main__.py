import sys

from lolrt.cli import main

sys.exit(main())
