# SPDX-License-Identifier: Apache-2.0
"""Tasks: what a GAN's own training is. The trainer reads a task and knows no GAN."""

from gansparse.tasks.dcgan import dcgan_task, latent_task
from gansparse.tasks.gan import Batch, GANTask, Terms

__all__ = ["Batch", "GANTask", "Terms", "dcgan_task", "latent_task"]
