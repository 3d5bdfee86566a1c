# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from gansparse.metrics.precision import plain_float32

CPU = torch.device("cpu")


def switches():
    """Everything that lets float32 be computed in less."""
    found = [torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
    for library in (torch.backends.cudnn, torch.backends.mkldnn):
        for op in ("conv", "matmul"):
            if hasattr(library, op):
                found.append(getattr(library, op).fp32_precision)
    return found


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_everything_is_off_inside_and_as_before_outside(products, convolutions):
    before = switches()
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    try:
        wanted = switches()
        for error in (None, KeyError):
            with torch.autocast("cpu"):
                try:
                    with plain_float32(CPU):
                        assert not torch.is_autocast_enabled("cpu")
                        assert not {"tf32", "bf16"} & set(inside())
                        if error:
                            raise error
                except KeyError:
                    pass
                assert torch.is_autocast_enabled("cpu")
            assert switches() == wanted
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def inside():
    """Each op's precision; the older switches must not be read while the newer are set."""
    if not hasattr(torch.backends.cudnn, "conv"):
        assert not torch.backends.cudnn.allow_tf32
        return [torch.get_float32_matmul_precision()]
    libraries = (torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda)
    ops = [getattr(lib, op, None) for lib in libraries for op in ("conv", "matmul")]
    return [op.fp32_precision for op in ops if op is not None]


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch 2.9 and later")
def test_the_newer_switches_are_restored_too():
    op = torch.backends.mkldnn.conv
    before = op.fp32_precision
    op.fp32_precision = "bf16"
    try:
        with plain_float32(CPU):
            assert op.fp32_precision == "ieee"
        assert op.fp32_precision == "bf16"
    finally:
        op.fp32_precision = before


@pytest.mark.cuda
def test_a_convolution_is_computed_in_float32_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(8, 64, 16, 16, generator=generator) for _ in range(2))
    wanted = torch.nn.functional.conv2d(x.double(), weight.double(), padding=8)
    with plain_float32(torch.device("cuda")):
        got = torch.nn.functional.conv2d(x.cuda(), weight.cuda(), padding=8).cpu()
    # 64 * 16 * 16 terms; TF32's ten bits of mantissa would give 5e-4.
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
