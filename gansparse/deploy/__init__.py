# SPDX-License-Identifier: Apache-2.0
"""Run a pruned generator as fast as this machine can: `compile` it."""

from gansparse.deploy.compiled import CompiledGenerator, compile
from gansparse.deploy.explain import Explanation

__all__ = ["CompiledGenerator", "Explanation", "compile"]
