# SPDX-License-Identifier: Apache-2.0
"""Networks, one architecture a file. They know nothing of pruning."""

from gansparse.models.checkpoint import shipped
from gansparse.models.cyclegan import ResNetGenerator
from gansparse.models.dcgan import (
    DCGANDiscriminator,
    DCGANGenerator,
    load_dcgan_discriminator,
    load_dcgan_generator,
)
from gansparse.models.examples import example_inputs
from gansparse.models.families import load_discriminator, load_generator
from gansparse.models.lenet import LeNet
from gansparse.models.msrresnet import MSRResNet
from gansparse.models.pix2pix import PatchGANDiscriminator, PixelDiscriminator, UNetGenerator
from gansparse.models.srgan import SRGANDiscriminator, SRGANGenerator
from gansparse.models.stargan import StarGANDiscriminator, StarGANGenerator

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "LeNet",
    "MSRResNet",
    "PatchGANDiscriminator",
    "PixelDiscriminator",
    "ResNetGenerator",
    "SRGANDiscriminator",
    "SRGANGenerator",
    "StarGANDiscriminator",
    "StarGANGenerator",
    "UNetGenerator",
    "example_inputs",
    "load_dcgan_discriminator",
    "load_dcgan_generator",
    "load_discriminator",
    "load_generator",
    "shipped",
]
