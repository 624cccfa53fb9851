"""A start from which the untrained network already is a principal component analysis.

In:  an Autoencoder and the Windows that it will learn from.
Out: its weights.

    start_as_pca(autoencoder, windows, seed=0)

Of all linear maps to d numbers and back, PCA has the lowest mean squared error (Eckart and Young
1936): with the d main components U as orthonormal columns and the mean m, an image x comes back as
U U'(x - m) + m. A network that starts there needs no epochs to find it, and training spends them
on what no linear map can do.

A layer is linear as long as its ReLU never bends. With an offset b that is at least -min(k * x),
ReLU(k * x + b) = k * x + b, and a BatchNormalization with mean u, variance s, gamma sqrt(s + eps)
and beta u - b takes the offset off again, so that the level hands on k * x. If the filters k are
orthonormal components V of the patches that a convolution sees, each patch (stride x stride) once,
then its transpose gives V V'x: all of x, or at least its main part. Orthonormal maps keep
distances, so the PCA of the last feature map's steps, in the Dense layers, is that of the images'.

      patch of the input              filters
    +---------------+    V'    +--------+--------+
    | main channels | -------> |  main  | random |   main:   components, never bent by ReLU
    +---------------+          +--------+--------+   random: the rest, free to learn;
                       <-------                              no main filter reads them yet
                         V

The share MAIN_SHARE of each convolution's filters are components; the others start at random, and
the decoder ignores them until training finds a use for them.
"""

import math

import numpy as np

from autoencoder import keras, layers, predict_in_batches
from support.errors import UserError

START_CELLS = 50_000_000  # of images, at most, that the components are of
START_WINDOWS_PER_PIECE = 20  # drawn at most
MAX_COVARIANCE_BYTES = 1 << 31
OFFSET_MARGIN = 1.2  # an offset over the lowest value seen
MAIN_SHARE = 0.6  # of a convolution's filters


def start_as_pca(autoencoder, windows, seed=0):
    """Set the weights so that the network is a PCA, and freeze its normalisations.

    Args:
        autoencoder: an Autoencoder of the layers in autoencoder.py.
    Raises:
        UserError: the autoencoder is built of other layers, or of too many features for a
            covariance of them.
    """
    check_layers(autoencoder)
    encoder, n_layers = autoencoder.encoder, len(autoencoder.conv_filters)
    most = max(1, START_CELLS // math.prod(windows.shape[1:]))
    images = windows.draw(min(most, START_WINDOWS_PER_PIECE * windows.shape[0]), seed)
    missing = -images.shape[2] % autoencoder.frames_per_step
    images = np.pad(images, [(0, 0), (0, 0), (0, missing), (0, 0)])
    maps = predict_in_batches(keras.Model(encoder.input, encoder.get_layer("conv_0").input), images)
    n_main = maps.shape[-1]  # of the level's channels hold components
    offset = np.zeros(n_main, np.float32)  # of the level below
    for index in range(n_layers):
        conv = encoder.get_layer(f"conv_{index}")
        kernel, n_components = compute_local_components(conv, maps, n_main)
        conv.set_weights([kernel, np.zeros(kernel.shape[-1])])
        mirror_kernel(autoencoder, index, kernel, n_main, n_components, offset)
        maps = predict_in_batches(keras.Model(encoder.input, conv.output), images)
        n_main = n_components
        offset = -np.minimum(maps.min(axis=(0, 1, 2)), 0) * OFFSET_MARGIN
        offset[n_main:] = 0  # ReLU may bend these from the first step
        conv.set_weights([kernel, offset])
        subtract_offset(autoencoder, index, np.maximum(maps + offset, 0), offset)
    set_dense_components(autoencoder, images, n_main)
    freeze_normalisations(autoencoder)


def check_layers(autoencoder):
    """Raise a UserError unless the network has the layers of autoencoder.py, by their names.

    Further Dense layers behind the feature maps, as a VAE has them, do no harm.
    """
    indices = range(len(autoencoder.conv_filters))
    convs, norms, deconvs = (
        [f"{kind}_{i}" for i in indices] for kind in ("conv", "norm", "deconv")
    )
    needed = {autoencoder.encoder: {*convs, *norms, "flatten", "latent"}}
    needed[autoencoder.decoder] = {*deconvs, *norms[1:], "features"}
    faults = []
    for model, names in needed.items():
        faults += [f"{name} is missing" for name in names - {layer.name for layer in model.layers}]
        for layer in model.layers:
            is_added = layer.weights and not isinstance(layer, layers.Dense)
            if is_added and layer.name not in names:
                faults.append(f"{layer.name} is added")
            if isinstance(layer, layers.Activation) or (
                layer.name in deconvs and layer.activation is not keras.activations.linear
            ):
                faults.append(f"{layer.name} is not linear")
    if faults:
        raise UserError(
            f"a start from PCA needs the layers of autoencoder.py, but {', '.join(faults)}: "
            "use --start random"
        )


def freeze_normalisations(autoencoder):
    """Keep all BatchNormalization layers as they are: they are part of the PCA's algebra.

    Live ones were tried: they leave the PCA in the first epochs, and end no lower.
    """
    for layer in autoencoder.encoder.layers + autoencoder.decoder.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False  # in Keras this freezes the stored statistics, too


def compute_local_components(conv, maps, n_main):
    """A kernel whose first filters are the principal components of the patches a layer sees.

    A kernel of "same" padding covers the patch of one stride and, on both sides, parts of its
    neighbours. The components are those of the patch alone, so that no cell counts twice:

        kernel of 3, stride 2:   . [a b]  . [c d]  . [e f]       crop = [1:3] of the kernel
                                 -----    -----    -----

    Args:
        conv: the Conv2D layer, padding "same".
        maps: float32 (n, height, width, channels), its input.
        n_main: how many of its input channels hold components; the others are left out.
    Returns:
        (float32 (height, width, channels, filters), how many filters hold components).
    """
    kernel, _ = conv.get_weights()
    crops = []
    for k, stride in zip(kernel.shape, conv.strides, strict=False):
        before = max(k - stride, 0) // 2  # zeros of the padding
        crops.append(slice(before, min(before + stride, k)))
    n, height, width, _ = maps.shape
    (down, right), (rows, columns) = conv.strides, (crop.stop - crop.start for crop in crops)
    patches = maps[..., :n_main].reshape(n, height // down, down, width // right, right, n_main)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)  # (n, down there, along, down, right, channels)
    patches = patches[..., :rows, :columns, :].reshape(-1, rows * columns * n_main)
    vectors = compute_components(patches)  # about zero
    n_components = min(math.ceil(MAIN_SHARE * kernel.shape[-1]), len(vectors))
    kernel[..., :n_components] = 0
    kernel[crops[0], crops[1], :n_main, :n_components] = vectors[:n_components].T.reshape(
        rows, columns, n_main, n_components
    )
    return kernel, n_components


def mirror_kernel(autoencoder, index, kernel, n_main_below, n_main, offset_below):
    """Give a decoder level the transpose of its encoder level's main filters."""
    deconv = autoencoder.decoder.get_layer(f"deconv_{index}")
    mirrored, _ = deconv.get_weights()  # (height, width, channels below, filters)
    mirrored[:, :, :n_main_below, :n_main] = kernel[:, :, :n_main_below, :n_main]
    mirrored[:, :, :n_main_below, n_main:] = 0
    deconv.set_weights([mirrored, offset_below])


def subtract_offset(autoencoder, index, maps, offset):
    """Let the normalisations behind level `index`, in both halves, subtract an offset."""
    mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
    norms = [autoencoder.encoder.get_layer(f"norm_{index}")]
    if index + 1 < len(autoencoder.conv_filters):
        norms.append(autoencoder.decoder.get_layer(f"norm_{index + 1}"))
    for norm in norms:
        gamma = np.sqrt(variance + norm.epsilon)
        norm.set_weights([gamma, mean - offset, mean, variance])


def set_dense_components(autoencoder, images, n_main):
    """Give the Dense layers the components of a step of the last feature maps' main channels."""
    encoder = autoencoder.encoder
    latent, features = encoder.get_layer("latent"), autoencoder.decoder.get_layer("features")
    flatten = encoder.get_layer("flatten")
    maps = predict_in_batches(keras.Model(encoder.input, flatten.input), images)
    steps = maps[..., :n_main].reshape(-1, maps.shape[2] * n_main)  # (n * steps, rows * main)
    mean = steps.mean(axis=0)
    components = compute_components(steps - mean)[: autoencoder.latent_space_dim]
    components = components.reshape(len(components), -1, n_main)
    kernel, bias = (weights.copy() for weights in features.get_weights())
    # A step has rows of all channels, the main ones first.
    kernel.reshape(-1, *maps.shape[2:])[: len(components), :, :n_main] = components
    bias.reshape(maps.shape[2:])[:, :n_main] = mean.reshape(-1, n_main)
    features.set_weights([kernel, bias])
    inverse = np.zeros((len(kernel), *maps.shape[2:]), np.float32)
    inverse[: len(components), :, :n_main] = components
    inverse = inverse.reshape(kernel.shape)
    latent.set_weights([inverse.T, -inverse @ bias])


def compute_components(points):
    """Principal components about zero, float32 (d, d), the most variance first.

    Args:
        points: float32 (n, d).
    Raises:
        UserError: their covariance would not fit in memory.
    """
    n_bytes = points.shape[1] ** 2 * points.itemsize
    if n_bytes > MAX_COVARIANCE_BYTES:
        raise UserError(
            f"a start from PCA needs a covariance of {n_bytes / 1e9:.0f} GB, since a convolution "
            f"has {points.shape[1]} features: use --start random"
        )
    _, vectors = np.linalg.eigh(points.T @ points)
    return vectors.T[::-1]
