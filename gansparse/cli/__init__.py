# SPDX-License-Identifier: Apache-2.0
"""The command `gansparse`: one file a command, thin over the Python API."""

from gansparse.cli.app import app, main

__all__ = ["app", "main"]
