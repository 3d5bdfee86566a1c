# SPDX-License-Identifier: Apache-2.0
"""Tasks: what a GAN's own training is. The trainer reads a task and knows no GAN."""

from gansparse.tasks.cyclegan import cyclegan_task
from gansparse.tasks.dcgan import dcgan_task, latent_task
from gansparse.tasks.gan import Batch, GANTask, Terms, View
from gansparse.tasks.loading import TASKS, load_task
from gansparse.tasks.pix2pix import pix2pix_task
from gansparse.tasks.srgan import srgan_task
from gansparse.tasks.stargan import stargan_task

__all__ = [
    "TASKS",
    "Batch",
    "GANTask",
    "Terms",
    "View",
    "cyclegan_task",
    "dcgan_task",
    "latent_task",
    "load_task",
    "pix2pix_task",
    "srgan_task",
    "stargan_task",
]
