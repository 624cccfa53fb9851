"""The default network in PyTorch, for training.py.

In:  our Autoencoder, and a batch.
Out: a function that makes one training step on the processor's cores.

    step = make_step(batch, autoencoder, "float32")
"""

import os

import torch
from torch import nn

from autoencoder import BETA_2


def make_step(batch, autoencoder, precision):
    """A function that trains for one step: the same layers, optimizer and loss, channels last.

    Args:
        batch: float32 (n, height, width, channels).
        precision: "float32" or "bfloat16".
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, height, width, channels = batch.shape
    batch = batch.transpose(0, 1, 3, 2).reshape(n, height * channels, 1, width)
    batch = torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)
    model = build_model(autoencoder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, BETA_2))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(batch)
        nn.functional.mse_loss(output.float(), batch).backward()
        optimizer.step()

    return step


def build_model(autoencoder):
    """The layers of choose_architecture's Autoencoder; the normalisations are frozen."""

    def activate(channels):
        return nn.ReLU(), nn.BatchNorm2d(channels).eval().requires_grad_(False)

    encoder, decoder = [], []
    width = autoencoder.n_steps * autoencoder.frames_per_step
    for index in range(len(autoencoder.conv_filters)):
        conv = autoencoder.encoder.get_layer(f"conv_{index}")
        channels, filters = conv.input.shape[-1], conv.filters
        kernel, strides, padding = conv.kernel_size, conv.strides, (0, conv.kernel_size[1] // 2)
        n_out = width // strides[1]
        encoder += [nn.Conv2d(channels, filters, kernel, strides, padding), *activate(filters)]
        n_missing = width - ((n_out - 1) * strides[1] - 2 * padding[1] + kernel[1])
        sizes = kernel, strides, padding, (0, n_missing)
        deconv = nn.ConvTranspose2d(filters, channels, *sizes)
        decoder[:0] = [deconv, *(activate(channels) if index else ())]
        width = n_out
    # A Dense layer at every step is a convolution of kernel 1.
    n_latent = autoencoder.latent_space_dim
    bottleneck = [nn.Conv2d(filters, n_latent, 1), nn.Conv2d(n_latent, filters, 1)]
    return nn.Sequential(*encoder, *bottleneck, *decoder)
