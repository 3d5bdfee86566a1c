# SPDX-License-Identifier: Apache-2.0
"""Sample tables, closeness and red zones: used by the tests and the benchmarks, and by yours."""

from __future__ import annotations

from gansparse.testing.compare import close, close_moments, same_direction
from gansparse.testing.redzones import RedZones

__all__ = ["RedZones", "close", "close_moments", "same_direction"]
