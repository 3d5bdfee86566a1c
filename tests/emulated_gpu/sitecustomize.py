# SPDX-License-Identifier: Apache-2.0
"""Python reads this at its start where this folder is on PYTHONPATH: run.py and what it starts."""

import os

if "EMULATED_GPU" in os.environ:
    import machine  # noqa: F401
