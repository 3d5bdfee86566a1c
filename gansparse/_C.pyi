# SPDX-License-Identifier: Apache-2.0
"""Types of the native core. An array is whatever speaks DLPack, or a TensorSpec."""

from collections.abc import Callable, Sequence
from typing import Any

Array = Any

OPS: dict[str, list[str]]

class TensorSpec:
    def __init__(
        self,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: str,
        device_type: str,
        device_index: int,
    ) -> None: ...

def build_info() -> dict[str, Any]: ...
def cuda_devices() -> dict[str, Any]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def set_device_memory_source(
    take: Callable[[int, int, int], int | None], give_back: Callable[[int], None]
) -> None: ...
def feature_moments(
    features: Array,
    total: Array,
    second: Array,
    *,
    shift: Array | None = None,
    stream: int = 0,
) -> None: ...
def instance_norm(
    input: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    residual: Array | None,
    activation: str,
    slope: float | Array,
    output: Array,
    stream: int = 0,
    moments: Array | None = None,
) -> None: ...
def mask_update(
    scores: Sequence[Array],
    masks: Sequence[Array],
    prune: Sequence[int],
    magnitude: bool,
    monotone: bool,
    stream: int = 0,
) -> None: ...
def masked_adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    steps: Sequence[Array],
    masks: Sequence[Array | None] | None,
    max_exp_avg_sqs: Sequence[Array] | None,
    lr: float | Array,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    stream: int = 0,
) -> None: ...
def sparse_conv2d(
    input: Array,
    values: Array,
    offsets: Array,
    starts: Array,
    rows: Array,
    geometry: Sequence[int],
    bias: Array | None,
    residual: Array | None,
    activation: str,
    slope: float | Array,
    out: Array,
    stream: int = 0,
) -> None: ...
def sparse_conv2d_gradient(
    input: Array,
    offsets: Array,
    starts: Array,
    rows: Array,
    geometry: Sequence[int],
    grad: Array,
    output: Array,
    stream: int = 0,
) -> None: ...
def sparse_conv2d_tiles_gradient(
    input: Array,
    values: Array,
    places: Array,
    starts: Array,
    geometry: Sequence[int],
    grad: Array,
    output: Array,
    stream: int = 0,
) -> None: ...
def winograd_conv2d(
    input: Array,
    values: Array,
    geometry: Sequence[int],
    bias: Array | None,
    residual: Array | None,
    activation: str,
    slope: float | Array,
    out: Array,
) -> None: ...
def sparse_conv2d_tiles(
    input: Array,
    values: Array,
    metadata: Array,
    places: Array,
    starts: Array,
    geometry: Sequence[int],
    bias: Array | None,
    residual: Array | None,
    activation: str,
    slope: float | Array,
    output: Array,
    stream: int = 0,
    moments: Array | None = None,
) -> None: ...
def sparse_conv2d_tiles_parts(
    geometry: Sequence[int], height: int, width: int, columns: bool = ...
) -> int: ...
