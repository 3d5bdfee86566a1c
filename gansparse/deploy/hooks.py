# SPDX-License-Identifier: Apache-2.0
"""Forward hooks of a generator: which a copy has for itself, and which a graph keeps."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.errors import InputError


def of(module: nn.Module) -> Iterator[tuple[dict[int, Any], int, bool]]:
    """A module's own forward hooks: what holds it, under which key, and whether it runs first."""
    if not isinstance(module, torch.jit.ScriptModule):
        for hooks, first in ((module._forward_pre_hooks, True), (module._forward_hooks, False)):
            for key in list(hooks):
                yield hooks, key, first


def check(generator: nn.Module) -> None:
    """Refuse hooks that name parts of the generator themselves: a copy's would act on these.

    Raises:
        InputError: there is one.
    """
    held = (*generator.named_modules(), *generator.named_parameters(), *generator.named_buffers())
    own = {id(value): name for name, value in held}
    for layer, part in generator.named_modules():
        for hooks, key, _ in of(part):
            for value in _named(hooks[key]):
                if id(value) in own:
                    raise InputError(
                        f"compile: a hook of {layer or 'the generator'} names "
                        f"{own[id(value)] or 'the generator'} itself, not its copy that is "
                        "compiled; let it use the module that it is given, or functools.partial"
                    )


def _named(hook: Any) -> Iterator[Any]:
    """What a function names and does not get: its copies name the same."""
    while isinstance(hook, (partial, types.MethodType)):  # these are copied with what they hold
        hook = hook.func if isinstance(hook, partial) else hook.__func__
    if not isinstance(hook, types.FunctionType):
        return
    cells = [cell.cell_contents for cell in hook.__closure__ or () if cell != types.CellType()]
    read = [step.argval for step in dis.get_instructions(hook) if step.opname == "LOAD_GLOBAL"]
    known = [hook.__globals__[name] for name in read if name in hook.__globals__]
    given = [*(hook.__defaults__ or ()), *(hook.__kwdefaults__ or {}).values()]
    for value in (*cells, *known, *given):
        yield value
        if isinstance(value, (list, tuple, dict)):
            yield from value.values() if isinstance(value, dict) else value


def tensors(module: nn.Module) -> list[Tensor]:
    """All that a module and those below it hold, in whatever form."""
    return [
        value
        for part in module.modules()
        for held in (vars(part), part._parameters, part._buffers)
        for value in held.values()
        if isinstance(value, Tensor)
    ]
