"""The convolutional autoencoder: its layers, training, saving and loading.

In:  images float32 (n, height, width, channels) in [0, 1].
Out: their reconstructions and latents; a folder with parameters.json and model.weights.h5.

    autoencoder = Autoencoder((512, 256, 1), (16, 32, 64), (3, 3, 3), (2, 2, 2), 128)
"""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np

from preprocess import write_json


@contextlib.contextmanager
def silence_native_stderr():
    """Send what C++ code writes to file descriptor 2 nowhere; Python errors still pass."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with silence_native_stderr():  # TensorFlow 2.21 logs a dozen notices before it reads that level
    import keras
    from keras import layers

    keras.distribution.list_devices()

BN_MOMENTUM = 0.9  # Keras's 0.99 needs thousands of steps before inference matches training
MAX_GRADIENT_NORM = 1.0  # keeps the first steps of a warm-up from throwing the weights far off
PREDICT_BATCH_SIZE = 32
START_IMAGES = 1500  # at most, for the principal components that training starts from
OFFSET_MARGIN = 1.2  # a feature map's bias over its lowest value seen
LOCAL_IMAGES = 200  # of them, for those of each convolution


class Autoencoder:
    """A convolutional autoencoder with a mirrored encoder and decoder.

    Args:
        input_shape: (height, width, channels), any sizes; odd sides come out as they went in.
        conv_filters, conv_kernels, conv_strides: one entry a convolution; a stride is an int
            or (vertical, horizontal).
        latent_space_dim: width of the Dense bottleneck.
    Raises:
        ValueError: lists of different lengths, or a size below 1.
    """

    def __init__(self, input_shape, conv_filters, conv_kernels, conv_strides, latent_space_dim):
        self.input_shape = check_sizes("input_shape", input_shape)
        self.conv_filters = check_sizes("conv_filters", conv_filters)
        self.conv_kernels = check_sizes("conv_kernels", conv_kernels)
        self.conv_strides = [
            stride if isinstance(stride, int) else check_sizes("conv_strides", stride)
            for stride in conv_strides
        ]
        check_sizes("conv_strides", [s for s in self.conv_strides if isinstance(s, int)])
        self.latent_space_dim = check_sizes("latent_space_dim", [latent_space_dim])[0]
        lengths = {len(self.conv_filters), len(self.conv_kernels), len(self.conv_strides)}
        if len(self.input_shape) != 3:
            raise ValueError(f"input_shape must be (height, width, channels), got {input_shape}")
        if len(lengths) != 1 or not self.conv_filters:
            raise ValueError(
                "conv_filters, conv_kernels and conv_strides must have one entry a layer, got "
                f"{len(self.conv_filters)}, {len(self.conv_kernels)}, {len(self.conv_strides)}"
            )
        self._build()

    def _build(self):
        image = keras.Input(self.input_shape, name="image")
        self.encoder, shapes = self._build_encoder(image)
        self.decoder = self._build_decoder(shapes)
        self.model = keras.Model(image, self.decoder(self.encoder(image)), name="autoencoder")

    def _build_encoder(self, image):
        x = image  # (batch, height, width, channels)
        shapes = []
        layer_settings = zip(self.conv_filters, self.conv_kernels, self.conv_strides, strict=True)
        for filters, kernel, strides in layer_settings:
            shapes.append(tuple(x.shape[1:]))
            index = len(shapes) - 1
            x = layers.Conv2D(
                filters, kernel, strides=strides, padding="same", name=f"conv_{index}"
            )(x)
            x = layers.ReLU()(x)
            x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"norm_{index}")(x)
        shapes.append(tuple(x.shape[1:]))
        x = layers.Flatten(name="flatten")(x)
        latent = layers.Dense(self.latent_space_dim, name="latent")(x)  # (batch, latent)
        return keras.Model(image, latent, name="encoder"), shapes

    def _build_decoder(self, shapes):
        latent = keras.Input((self.latent_space_dim,), name="latent")
        x = layers.Dense(int(np.prod(shapes[-1])), name="features")(latent)
        x = layers.Reshape(shapes[-1])(x)
        for index in reversed(range(len(self.conv_filters))):
            kernel, strides = self.conv_kernels[index], self.conv_strides[index]
            deconv = layers.Conv2DTranspose(
                shapes[index][2], kernel, strides=strides, padding="same", name=f"deconv_{index}"
            )
            x = deconv(x)
            # A side that its stride does not divide comes out too long; cut what the convolution
            # padded, so that every kernel lies where its mirror image lay.
            crop = []
            for axis in (0, 1):
                size, full = shapes[index][axis], x.shape[1 + axis]
                before = pad_before(size, kernel, deconv.strides[axis]) - pad_before(
                    full, kernel, deconv.strides[axis]
                )
                crop.append((before, full - size - before))
            if np.any(crop):
                x = layers.Cropping2D(crop)(x)
            if index > 0:
                x = layers.ReLU()(x)
                x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"norm_{index}")(x)
        return keras.Model(latent, x, name="decoder")

    @property
    def parameters(self):
        """The constructor's arguments by name."""
        return {
            "input_shape": self.input_shape,
            "conv_filters": self.conv_filters,
            "conv_kernels": self.conv_kernels,
            "conv_strides": self.conv_strides,
            "latent_space_dim": self.latent_space_dim,
        }

    def summary(self):
        """Print the layers of the encoder, the decoder and the whole."""
        self.encoder.summary()
        self.decoder.summary()
        self.model.summary()

    def compile(self, learning_rate=1e-3):
        """Make ready to train with Adam on the mean squared error.

        Args:
            learning_rate: float > 0 or a keras LearningRateSchedule.
        """
        optimizer = keras.optimizers.Adam(learning_rate, clipnorm=MAX_GRADIENT_NORM)
        self.model.compile(optimizer=optimizer, loss="mse")

    def train(
        self, x_train, batch_size, epochs, *, steps_per_epoch=None, x_validation=None,
        callbacks=(), verbose=0,
    ):  # fmt: skip
        """Fit the model to reproduce x_train.

        Args:
            x_train, x_validation: float32 (n, height, width, channels), in [0, 1]; x_train may
                be an iterator over (images, images) batches instead, with steps_per_epoch.
        Returns:
            The keras History.
        """
        validation_data = None if x_validation is None else (x_validation, x_validation)
        is_array = isinstance(x_train, np.ndarray)
        return self.model.fit(
            x_train, x_train if is_array else None, batch_size=batch_size if is_array else None,
            epochs=epochs, shuffle=is_array,
            steps_per_epoch=None if is_array else steps_per_epoch,
            validation_data=validation_data, callbacks=list(callbacks), verbose=verbose,
        )  # fmt: skip

    def start_as_pca(self, images, seed=0):
        """Set all weights so that the untrained model is a principal component analysis.

        Each convolution takes the principal components of the patches it sees, with a bias that
        keeps them above zero, where ReLU changes nothing; BatchNormalization takes the bias off
        again; the Dense layers hold the components of the last feature maps, and the decoder is
        the transpose of it all. Filters beyond a patch's size keep their random start.

        Args:
            images: float32 (n, height, width, channels), in [0, 1].
        """
        rng = np.random.default_rng(seed)
        if len(images) > START_IMAGES:
            images = images[np.sort(rng.choice(len(images), START_IMAGES, replace=False))]
        local_images = images[:: math.ceil(len(images) / LOCAL_IMAGES)]
        features, offset = local_images, None  # (n, height, width, channels) of each level
        n_main = images.shape[-1]
        for index in range(len(self.conv_filters)):
            conv, deconv = (
                self.encoder.get_layer(f"conv_{index}"),
                self.decoder.get_layer(f"deconv_{index}"),
            )
            kernel, n_main = compute_local_components(conv, features, n_main)
            deconv_kernel = kernel.copy()
            deconv_kernel[..., n_main:] = 0
            deconv.set_weights([deconv_kernel, np.zeros(kernel.shape[2]) if index == 0 else offset])
            conv.set_weights([kernel, np.zeros(kernel.shape[3])])
            maps = predict_in_batches(keras.Model(self.encoder.input, conv.output), local_images)
            offset = -np.minimum(maps.min(axis=(0, 1, 2)), 0) * OFFSET_MARGIN
            conv.set_weights([kernel, offset])
            features = self._subtract_offset(index, maps + offset, offset)
        self._set_dense_components(images, n_main, seed)

    def _subtract_offset(self, index, maps, offset):
        """Let the normalisations after level `index` subtract an offset; the maps after it."""
        mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
        encoder_norm = self.encoder.get_layer(f"norm_{index}")
        gamma = np.sqrt(variance + encoder_norm.epsilon)
        encoder_norm.set_weights([gamma, mean - offset, mean, variance])
        if index + 1 < len(self.conv_filters):
            decoder_norm = self.decoder.get_layer(f"norm_{index + 1}")
            decoder_norm.set_weights([gamma, mean - offset, mean, variance])
        return maps - offset

    def _set_dense_components(self, images, n_main, seed):
        from sklearn.decomposition import PCA

        last_maps = self.encoder.get_layer("flatten").input
        maps = predict_in_batches(keras.Model(self.encoder.input, last_maps), images)
        shape = maps.shape[1:]
        features = maps[..., :n_main].reshape(len(maps), -1)
        n_components = min(self.latent_space_dim, *features.shape)
        pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(features)
        encoder_kernel, encoder_bias = self.encoder.get_layer("latent").get_weights()
        components = np.zeros((n_components, *shape), np.float32)
        components[..., :n_main] = pca.components_.reshape(n_components, *shape[:-1], n_main)
        components = components.reshape(n_components, -1)
        mean = np.zeros(shape, np.float32)
        mean[..., :n_main] = pca.mean_.reshape(*shape[:-1], n_main)
        encoder_kernel[:, :n_components] = components.T
        encoder_kernel[:, n_components:] = 0
        encoder_bias[:n_components] = -components @ mean.ravel()
        self.encoder.get_layer("latent").set_weights([encoder_kernel, encoder_bias])
        self.decoder.get_layer("features").set_weights([encoder_kernel.T, mean.ravel()])

    def encode(self, images):
        """The latents of images, float32 (n, latent_space_dim)."""
        return predict_in_batches(self.encoder, images)

    def decode(self, latents):
        """The images of latents, float32 (n, height, width, channels), in [0, 1]."""
        images = predict_in_batches(self.decoder, latents)
        return np.clip(images, 0, 1)  # the output layer is linear

    def reconstruct(self, images):
        """Images through the bottleneck and back: (reconstructed in [0, 1], latents)."""
        latents = self.encode(images)
        return self.decode(latents), latents

    def save(self, folder):
        """Write parameters.json and model.weights.h5."""
        folder = Path(folder)
        write_json(folder / "parameters.json", self.parameters)
        temporary = folder / f".{os.getpid()}.weights.h5"
        try:
            # Of a compiled model Keras 3.15 would save the optimizer too, three times the size.
            keras.Model(self.model.input, self.model.output).save_weights(temporary)
            os.replace(temporary, folder / "model.weights.h5")
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder):
        """The autoencoder that save() wrote.

        Raises:
            FileNotFoundError: the folder holds no model.
            ValueError: the parameters or weights are damaged or do not fit each other.
        """
        parameters_path = Path(folder) / "parameters.json"
        if not parameters_path.is_file():
            raise FileNotFoundError(f"no model in {folder}: run train.py first")
        try:
            autoencoder = cls(**json.loads(parameters_path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{parameters_path} is no set of parameters: {error}") from error
        autoencoder.load_weights(Path(folder) / "model.weights.h5")
        return autoencoder

    def load_weights(self, path):
        """Load weights of the same architecture from a .weights.h5 file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {path}: run train.py first")
        try:
            self.model.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"{path} does not fit the parameters beside it, or is damaged: run train.py again"
            ) from error


def predict_in_batches(model, inputs):
    """The model's outputs in inference mode, numpy float32; fewer traces than Model.predict."""
    starts = range(0, len(inputs), PREDICT_BATCH_SIZE)
    return np.concatenate(
        [
            keras.ops.convert_to_numpy(
                model(inputs[start : start + PREDICT_BATCH_SIZE], training=False)
            )
            for start in starts
        ]
    )


def pad_before(size, kernel, stride):
    """How many zeros "same" padding puts in front of an axis."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2


def check_sizes(name, sizes):
    """The sizes as a list of ints, or a ValueError where one is below 1."""
    sizes = list(sizes)
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"{name} must hold integers of at least 1, got {sizes}")
    return [int(size) for size in sizes]


def compute_local_components(conv, features, n_main):
    """A kernel whose first filters are the principal components of the patches a layer sees.

    Args:
        conv: the Conv2D layer, padding "same".
        features: float32 (n, height, width, channels), its input.
        n_main: how many of its input channels hold components; the others are left out.
    Returns:
        (float32 (kernel, kernel, channels, filters), how many filters hold components).
    """
    kernel, _ = conv.get_weights()
    crops, widths = [], []
    for axis in (0, 1):
        size, stride, k = features.shape[1 + axis], conv.strides[axis], kernel.shape[axis]
        n_out = -(-size // stride)
        before = pad_before(size, k, stride)
        crops.append(slice(before, min(before + stride, k)))
        widths.append((0, n_out * stride - size))
    padded = np.pad(features[..., :n_main], [(0, 0), *widths, (0, 0)])
    n, height, width, _ = padded.shape
    patches = padded.reshape(
        n, height // conv.strides[0], conv.strides[0], width // conv.strides[1], conv.strides[1], -1
    ).transpose(0, 1, 3, 2, 4, 5)
    rows, columns = crops[0].stop - crops[0].start, crops[1].stop - crops[1].start
    patches = patches[..., :rows, :columns, :].reshape(-1, rows * columns * n_main)
    _, vectors = np.linalg.eigh(patches.T @ patches)
    n_components = min(kernel.shape[-1], vectors.shape[1])
    kernel[..., :n_components] = 0
    components = vectors[:, ::-1][:, :n_components].reshape(rows, columns, n_main, n_components)
    kernel[crops[0], crops[1], :n_main, :n_components] = components
    return kernel, n_components
