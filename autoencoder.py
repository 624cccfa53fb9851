"""The convolutional autoencoder: its layers, training, saving and loading.

In:  images float32 (n, height, width, channels) in [0, 1], of any width.
Out: their reconstructions and latents; a folder with parameters.json and model.weights.h5.

    autoencoder = Autoencoder((512, 256, 1), (16, 32, 64), (3, 3, 3), (2, 2, 2), 128)
    python autoencoder.py    # prints the layers of the default network with their shapes
"""

import dataclasses
import io
import math
import warnings
from pathlib import Path

import numpy as np

from support.errors import UserError
from support.files import read_json, reading, write_atomically, write_json
from support.keras import keras

layers = keras.layers

BN_MOMENTUM = 0.9  # Keras's 0.99 needs thousands of steps before inference matches training
BETA_2 = 0.95  # of Adam; with Keras's 0.999 the learning rate that trains best kills the ReLUs
PREDICT_BATCH_SIZE = 32
STRETCH_STEPS = 128  # of a long sequence, computed together
MAX_SIZE = 1 << 20  # of any of the parameters

FIRST_FILTERS, FILTERS = 160, 320  # of the default network: of its first layer, of each other one
FRAMES_PER_STEP = 16  # columns of an image that share a latent
CELLS_PER_NUMBER = 64  # of an image, for each number of its latents


@dataclasses.dataclass(eq=False)
class Autoencoder:
    """A convolutional autoencoder with a mirrored encoder and decoder.

    Each step of some columns has a latent of its own: the network is a convolution in time, so
    that its weights fit images of any width. With as many columns to a step as an image has, it
    has one latent. The fields are what parameters.json holds: one that is added here is saved and
    loaded, too.

    Args:
        input_shape: (height, width, channels), any sizes; odd sides come out as they went in.
        conv_filters, conv_kernels, conv_strides: one entry per convolution; a kernel or stride is
            an int for a square, or (vertical, horizontal).
        latent_space_dim: width of the Dense bottleneck: numbers for each step.
        bins_as_channels: make it a 1-D convolution over time whose input channels are the bins
            (times the image's channels); an int is then a kernel or stride over time.
        bin_hz: Hz from one row of the image to the next; then rows count as the mel scale spaces
            them, in the loss and in what the convolutions see. 0: all count alike.
        precision: "float32", "bfloat16" or "float16", the arithmetic while it trains; its weights,
            and all that it computes afterwards, are float32.
    Attributes:
        frames_per_step: columns of a step, the product of the horizontal strides.
        n_steps: of an image of input_shape.
    Raises:
        UserError: lists of different lengths, or a number out of its range.
    """

    input_shape: tuple
    conv_filters: tuple
    conv_kernels: tuple
    conv_strides: tuple
    latent_space_dim: int
    _: dataclasses.KW_ONLY
    bins_as_channels: bool = False
    bin_hz: float = 0.0
    precision: str = "float32"

    def __post_init__(self):
        self.input_shape = check_sizes("input_shape", self.input_shape, 3)
        self.conv_filters = check_sizes("conv_filters", self.conv_filters)
        self.conv_kernels = self._check_pairs("conv_kernels", self.conv_kernels)
        self.conv_strides = self._check_pairs("conv_strides", self.conv_strides)
        (self.latent_space_dim,) = check_sizes("latent_space_dim", [self.latent_space_dim])
        lengths = [*map(len, (self.conv_filters, self.conv_kernels, self.conv_strides))]
        if len({*lengths}) != 1 or not lengths[0]:
            raise UserError(
                "conv_filters, conv_kernels and conv_strides must have one entry per layer, "
                f"got {lengths}"
            )
        if not isinstance(self.bin_hz, (int, float)) or not 0 <= self.bin_hz <= MAX_SIZE:
            raise UserError(f"bin_hz must be in 0..{MAX_SIZE}, got {self.bin_hz!r}")
        self._build()

    def _check_pairs(self, name, sizes):
        """Kernels or strides as pairs: (vertical, horizontal)."""
        if not isinstance(sizes, (list, tuple)):
            raise UserError(f"{name} must be a list of integers or pairs, got {sizes!r}")
        pairs = []
        for size in sizes:
            if isinstance(size, int):
                size = (1, size) if self.bins_as_channels else (size, size)
            pairs.append(check_sizes(name, size, 2))
        return tuple(pairs)

    def _build(self):
        height, width, _ = self.input_shape
        self.row_weights = weigh_rows(height, self.bin_hz)  # (height, 1, 1)
        self.frames_per_step = math.prod(stride for _, stride in self.conv_strides)
        self.n_steps = -(-width // self.frames_per_step)
        self.encoder, shapes = self._build_encoder()
        self.decoder = self._build_decoder(shapes)
        image = keras.Input(self.input_shape, name="image")  # (batch, height, width, channels)
        missing = self.n_steps * self.frames_per_step - width
        whole = layers.ZeroPadding2D(((0, 0), (0, missing)))(image) if missing else image
        x = self.decoder(self.encoder(whole))
        x = layers.Cropping2D(((0, 0), (0, missing)))(x) if missing else x
        self.model = keras.Model(image, x, name="autoencoder")

    def _build_encoder(self):
        """The encoder of images of whole steps, and the (rows, channels) of each feature map."""
        height, _, channels = self.input_shape
        image = keras.Input((height, None, channels), name="image")
        x = image * np.sqrt(self.row_weights)  # so that a squared error counts by them
        if self.bins_as_channels:
            x = layers.Permute((2, 1, 3))(x)  # (batch, frames, height, channels)
            x = layers.Reshape((1, -1, height * channels))(x)  # (batch, 1, frames, channels)
        elif missing := -height % math.prod(stride for stride, _ in self.conv_strides):
            x = layers.ZeroPadding2D(((0, missing), (0, 0)))(x)
        shapes = [(x.shape[1], x.shape[3])]
        for index in range(len(self.conv_filters)):
            x = self._conv_block(x, index)  # (batch, rows / stride, frames / stride, filters)
            shapes.append((x.shape[1], x.shape[3]))
        latent = self._bottleneck(x)  # (batch, steps, latent_space_dim)
        return keras.Model(image, latent, name="encoder"), shapes

    def _build_decoder(self, shapes):
        """The encoder's mirror image: from the last of its feature maps back to the first."""
        height, _, channels = self.input_shape
        rows, filters = shapes[-1]
        latent = keras.Input((None, self.latent_space_dim), name="latent")
        x = layers.Dense(rows * filters, name="features")(latent)
        x = layers.Reshape((-1, rows, filters))(x)
        x = layers.Permute((2, 1, 3))(x)  # (batch, rows, steps, filters)
        for index in reversed(range(len(self.conv_filters))):
            x = self._deconv_block(x, index, shapes[index][1])
        if self.bins_as_channels:
            x = layers.Reshape((-1, height, channels))(x)
            x = layers.Permute((2, 1, 3))(x)  # (batch, height, frames, channels)
        elif missing := shapes[0][0] - height:
            x = layers.Cropping2D(((0, missing), (0, 0)))(x)
        x = x / np.sqrt(self.row_weights)
        return keras.Model(latent, x, name="decoder")  # (batch, height, frames, channels), linear

    def _conv_block(self, x, index):
        """Convolution, ReLU and BatchNormalization."""
        conv = layers.Conv2D(self.conv_filters[index], name=f"conv_{index}", **self._size(index))
        return self._activate(conv(x), index)

    def _bottleneck(self, x):
        """The latent of each step of the last feature map; a VAE changes this place."""
        _, rows, _, filters = x.shape
        x = layers.Permute((2, 1, 3))(x)
        x = layers.Reshape((-1, rows * filters), name="flatten")(x)  # (batch, steps, features)
        return layers.Dense(self.latent_space_dim, name="latent")(x)

    def _deconv_block(self, x, index, filters):
        """A _conv_block backwards, to as many channels as its input had; the last one is linear."""
        deconv = layers.Conv2DTranspose(filters, name=f"deconv_{index}", **self._size(index))
        return self._activate(deconv(x), index) if index > 0 else deconv(x)

    def _activate(self, x, index):
        norm = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"norm_{index}")
        return norm(layers.ReLU()(x))

    def _size(self, index):
        """The kernel, strides and padding of a convolution and of its mirror image."""
        kernel, strides = self.conv_kernels[index], self.conv_strides[index]
        return {"kernel_size": kernel, "strides": strides, "padding": "same"}

    @property
    def reach(self):
        """Frames, at most, on either side of a step that its latent and its image depend on.

        Each kernel counts with its whole width, and branches as if one followed the other.
        """
        reaches = []
        for model in (self.encoder, self.decoder):
            reach, frames = 0, 1 if model is self.encoder else self.frames_per_step
            for layer in model.layers:
                kernel, stride = (
                    np.ravel(getattr(layer, name, 1))[-1] for name in ("kernel_size", "strides")
                )
                if isinstance(layer, layers.Conv2DTranspose):
                    frames //= stride
                reach += (kernel - 1) * np.ravel(getattr(layer, "dilation_rate", 1))[-1] * frames
                if not isinstance(layer, layers.Conv2DTranspose):
                    frames *= stride
            reaches.append(int(reach))
        return max(reaches)

    @property
    def parameters(self):
        """The constructor's arguments by name."""
        return dataclasses.asdict(self)

    def summary(self):
        """Print the layers of the encoder, the decoder and the whole, with their shapes."""
        self.encoder.summary()
        self.decoder.summary()
        self.model.summary()

    def compile(self, learning_rate=1e-3):
        """Make ready to train with Adam on the weighted error.

        Args:
            learning_rate: float > 0, or a Keras LearningRateSchedule.
        """
        optimizer = keras.optimizers.Adam(learning_rate, beta_2=BETA_2)
        if self.precision == "float16":  # small gradients would round to zero
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model.compile(optimizer=optimizer, loss=self.weighted_error)
        # Now: if its variables came with the first step, TensorFlow would trace that twice.
        optimizer.build(self.model.trainable_variables)

    def weighted_error(self, images, reconstructed):
        """The mean squared error of each image, whose rows count by row_weights."""
        errors = keras.ops.square(images - reconstructed)  # (batch, height, width, channels)
        return keras.ops.mean(self.row_weights * errors, axis=(1, 2, 3))

    def train(
        self, x_train, batch_size, epochs, *, x_validation=None, initial_epoch=0, callbacks=()
    ):
        """Fit the model to reproduce x_train.

        Args:
            x_train, x_validation: float32 (n, height, width, channels), in [0, 1], or Windows,
                whose make_model() wraps this network in one that makes images of their batches.
            batch_size: images; None with Windows, which have one.
            initial_epoch: how many of the epochs have passed already.
            callbacks: of Keras; each gets the attributes `autoencoder`, which is this one,
                `x_train` and `x_validation`.
        """
        for callback in callbacks:
            callback.autoencoder = self
            callback.x_train, callback.x_validation = x_train, x_validation
        is_array = isinstance(x_train, np.ndarray)
        model = self.model if is_array else x_train.make_model(self)
        if isinstance(x_validation, np.ndarray):
            x_validation = (x_validation, x_validation)
        self._set_precision(self.precision)
        try:
            model.fit(
                x_train,
                x_train if is_array else None,
                batch_size=batch_size,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=x_validation,
                shuffle=is_array,  # the order of Windows is their own
                callbacks=[*callbacks],
                verbose=0,
            )
        finally:
            self._set_precision("float32")

    def _set_precision(self, precision):
        """Choose the arithmetic of the layers; their weights stay float32."""
        for layer in self.encoder.layers + self.decoder.layers:
            layer.dtype_policy = precision if precision == "float32" else f"mixed_{precision}"

    def encode(self, images):
        """The latents of images of any width, float32 (n, steps, latent_space_dim)."""
        missing = -images.shape[2] % self.frames_per_step
        if missing:
            images = np.pad(images, [(0, 0), (0, 0), (0, missing), (0, 0)])
        return predict_in_batches(self.encoder, images)

    def decode(self, latents):
        """The images of latents, float32 (n, height, steps * frames_per_step, channels), in [0, 1].

        They are in whole steps, and so wider than input_shape if its width is not.
        """
        return np.clip(predict_in_batches(self.decoder, latents), 0, 1)  # it is linear at the end

    def reconstruct(self, images):
        """Images through the bottleneck and back: (reconstructed in [0, 1], latents)."""
        latents = self.encode(images)
        return self.decode(latents)[:, :, : images.shape[2]], latents

    def plan_stretches(self, n_steps, multiple=1, reach=0):
        """Yield stretches of a long sequence of steps, in which it is encoded or decoded.

        Each has a margin on both sides that is as wide as what its steps depend on, so that the
        whole comes out as it would in one pass.

        Args:
            multiple: of all places but the end.
            reach: frames, at most, that what follows depends on.
        Yields:
            (first, start, stop, last): steps start to stop, with their margins first to last.
        """
        least_margin = -(-(self.reach + reach) // self.frames_per_step)
        stretch, margin = (-(-n // multiple) * multiple for n in (STRETCH_STEPS, least_margin))
        for start in range(0, n_steps, stretch):
            stop = min(start + stretch, n_steps)
            yield max(0, start - margin), start, stop, min(stop + margin, n_steps)

    def save(self, folder):
        """Write model.weights.h5, and then parameters.json."""
        weights = WeightsBuffer()
        # Of a compiled model Keras 3.15 would save the optimizer too, three times the size.
        keras.Model(self.model.input, self.model.output).save_weights(weights)
        write_atomically(Path(folder) / "model.weights.h5", weights.getbuffer())
        write_json(Path(folder) / "parameters.json", self.parameters)

    @classmethod
    def load(cls, folder):
        """The autoencoder that save() wrote.

        Raises:
            FileNotFoundError: the folder holds no model.
            UserError: the parameters or weights are damaged or do not fit each other.
        """
        path = Path(folder) / "parameters.json"
        if_missing = "run train.py, with --resume if it was interrupted"
        with reading(path, "run train.py again", if_missing):
            parameters = read_json(path)
            names = {field.name for field in dataclasses.fields(cls)}
            if not isinstance(parameters, dict) or parameters.keys() != names:
                raise UserError(f"its parameters must be {', '.join(sorted(names))}")
        try:  # not in reading(): a mistake in an edited network keeps its traceback
            autoencoder = cls(**parameters)
        except UserError as error:
            raise UserError(f"{path}: {error}: run train.py again") from error
        autoencoder.load_weights(Path(folder) / "model.weights.h5")
        return autoencoder

    def load_weights(self, path):
        """Load weights of the same architecture from a .weights.h5 file.

        Raises:
            FileNotFoundError: it does not exist.
            UserError: it is damaged, or of another architecture.
        """
        with reading(path, "run train.py again"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras 3.15 warns of each layer first
            self.model.load_weights(path)


class WeightsBuffer(io.BytesIO):
    """Memory that Keras writes weights to: on a full disk HDF5 would end the process."""

    def __str__(self):
        return ".weights.h5"  # an ending that Keras asks for


def predict_in_batches(model, inputs):
    """The model's outputs in inference mode, numpy float32; fewer traces than Model.predict."""
    starts = range(0, len(inputs), PREDICT_BATCH_SIZE)
    batches = [
        keras.ops.convert_to_numpy(
            model(inputs[start : start + PREDICT_BATCH_SIZE], training=False)
        )
        for start in starts
    ]
    return np.concatenate(batches).astype(np.float32, copy=False)


def weigh_rows(height, bin_hz):
    """How much the rows of an image count: as the mel scale spaces them, 1 on average.

    The scale's density is nearly 1 / (1 + f / 700 Hz) (O'Shaughnessy 1987).

    Returns:
        float32 (height, 1, 1).
    """
    weights = 1 / (1 + bin_hz / 700 * np.arange(height))
    return (weights / weights.mean()).astype(np.float32)[:, np.newaxis, np.newaxis]


def check_sizes(name, sizes, count=None):
    """The sizes as a tuple; a UserError unless they are `count` integers in 1..MAX_SIZE."""
    is_list = isinstance(sizes, (list, tuple)) and count in (None, len(sizes))
    integers = (int, np.integer)
    if not is_list or not all(isinstance(n, integers) and 1 <= n <= MAX_SIZE for n in sizes):
        many = "integers" if count is None else f"{count} integers"
        raise UserError(f"{name} must hold {many} in 1..{MAX_SIZE}, got {sizes!r}")
    return tuple(map(int, sizes))


def choose_architecture(
    input_shape, *, conv_filters=None, latent_space_dim=None, sample_rate=0, precision="float32"
):
    """The Autoencoder's arguments for spectrograms of a shape.

    It is a 1-D convolution over time whose channels are the bins: the filters of the first layer
    are spectra, and each other layer halves the number of frames.

    Args:
        input_shape: (height, width, channels).
        conv_filters: one entry per convolution, or None to choose them.
        latent_space_dim: numbers for each step, or None to choose them.
        sample_rate: Hz, to weigh the bins as the mel scale spaces them; 0: all alike.
    """
    height, width, channels = input_shape
    n_halvings = round(math.log2(min(FRAMES_PER_STEP, max(2, width))))
    n_halvings = len(conv_filters) - 1 if conv_filters else n_halvings
    cells = height * channels * 2**n_halvings  # of a step
    if not latent_space_dim:
        latent_space_dim = max(1, cells // CELLS_PER_NUMBER)
        if conv_filters:  # which can give no more
            latent_space_dim = min(latent_space_dim, conv_filters[-1])
    if not conv_filters:
        last = max(FILTERS, 7 * latent_space_dim // 4)  # start_as_pca has components in 0.6 of them
        conv_filters = (FIRST_FILTERS, *[FILTERS] * (n_halvings - 1), last)
    return {
        "input_shape": tuple(input_shape),
        "conv_filters": tuple(conv_filters),
        "conv_kernels": (1,) + (3,) * n_halvings,
        "conv_strides": (1,) + (2,) * n_halvings,
        "latent_space_dim": latent_space_dim,
        "bin_hz": sample_rate / 2 / height,
        "bins_as_channels": True,
        "precision": precision,
    }


if __name__ == "__main__":
    Autoencoder(**choose_architecture((512, 256, 1))).summary()
