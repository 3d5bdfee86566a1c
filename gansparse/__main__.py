# SPDX-License-Identifier: Apache-2.0
"""`python -m gansparse` is the command `gansparse`."""

from gansparse.cli import main

if __name__ == "__main__":
    main()
