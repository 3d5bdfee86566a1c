# SPDX-License-Identifier: Apache-2.0
"""Networks, one architecture a file. They know nothing of pruning."""

from gansparse.models.checkpoint import (
    load_dcgan_discriminator,
    load_dcgan_generator,
    shipped,
)
from gansparse.models.dcgan import DCGANDiscriminator, DCGANGenerator
from gansparse.models.lenet import LeNet

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "LeNet",
    "load_dcgan_discriminator",
    "load_dcgan_generator",
    "shipped",
]
