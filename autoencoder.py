"""The convolutional autoencoder: its layers, training, saving and loading.

In:  images float32 (n, height, width, channels) in [0, 1].
Out: their reconstructions and latents; a folder with parameters.json and model.weights.h5.

    autoencoder = Autoencoder((512, 256, 1), (16, 32, 64), (3, 3, 3), (2, 2, 2), 128)
    python autoencoder.py    # prints the layers of the default network with their shapes
"""

import dataclasses
import io
import os
import warnings
from pathlib import Path

import numpy as np

from support.errors import UserError
from support.files import FileSet, format_json, native_silence, read_json

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    with native_silence:  # TensorFlow 2.21 logs a dozen notices before it reads that level
        import keras
        from keras import layers

        if keras.config.backend() == "tensorflow":  # JAX must not look before its processes join
            keras.distribution.list_devices()
    if keras.config.backend() not in ("tensorflow", "jax"):
        raise ImportError(f"Keras would compute with {keras.config.backend()}")
except ImportError as error:
    raise UserError(
        f"{error}: set KERAS_BACKEND to tensorflow or jax, and install requirements.txt"
    ) from error
# What a user's keras.json may say is not what a saved model means.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
keras.config.set_epsilon(1e-7)

BN_MOMENTUM = 0.9  # Keras's 0.99 needs thousands of steps before inference matches training
BETA_2 = 0.95  # of Adam; with Keras's 0.999 the learning rate that trains best kills the ReLUs
PREDICT_BATCH_SIZE = 32
PRECISIONS = ("float32", "bfloat16", "float16")
MAX_SIZE = 1 << 20  # of any of the parameters
MAX_LAYERS = 64


@dataclasses.dataclass(eq=False)
class Autoencoder:
    """A convolutional autoencoder with a mirrored encoder and decoder.

    The fields are what parameters.json holds: one that is added here is saved and loaded, too.

    Args:
        input_shape: (height, width, channels), any sizes; odd sides come out as they went in.
        conv_filters, conv_kernels, conv_strides: one entry per convolution; a kernel or stride is
            an int for a square, or (vertical, horizontal).
        latent_space_dim: width of the Dense bottleneck.
        bins_as_channels: make it a 1-D convolution over time whose input channels are the bins
            (times the image's channels); an int is then a kernel or stride over time.
        bin_hz: Hz from one row of the image to the next; then rows count as the mel scale spaces
            them, in the loss and in what the convolutions see. 0: all count alike.
        precision: one of PRECISIONS, the arithmetic while it trains; its weights, and all that it
            computes afterwards, are float32.
    Raises:
        UserError: lists of different lengths, or a size that is not an integer from 1 up.
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
        if len({*lengths}) != 1 or not 1 <= lengths[0] <= MAX_LAYERS:
            raise UserError(
                "conv_filters, conv_kernels and conv_strides must have one entry per layer, "
                f"1 to {MAX_LAYERS}, got {lengths}"
            )
        if self.bins_as_channels not in (True, False):
            raise UserError(
                f"bins_as_channels must be true or false, got {self.bins_as_channels!r}"
            )
        if not isinstance(self.bin_hz, (int, float)) or not 0 <= self.bin_hz <= MAX_SIZE:
            raise UserError(f"bin_hz must be in 0..{MAX_SIZE}, got {self.bin_hz!r}")
        if self.precision not in PRECISIONS:
            raise UserError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
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
        self.row_weights = weigh_rows(self.input_shape[0], self.bin_hz)  # (height, 1, 1)
        self.encoder, shapes = self._build_encoder()
        self.decoder = self._build_decoder(shapes)
        image = keras.Input(self.input_shape, name="image")  # (batch, height, width, channels)
        self.model = keras.Model(image, self.decoder(self.encoder(image)), name="autoencoder")

    def _build_encoder(self):
        """The encoder, and the shapes of each convolution's input and of the last one's output."""
        image = keras.Input(self.input_shape, name="image")  # (batch, height, width, channels)
        x = image * np.sqrt(self.row_weights)  # so that a squared error counts by them
        if self.bins_as_channels:
            x = self._bins_to_channels(x)  # (batch, 1, width, height * channels)
        shapes = [x.shape[1:]]
        for index in range(len(self.conv_filters)):
            x = self._conv_block(x, index)  # (batch, height / stride, width / stride, filters)
            shapes.append(x.shape[1:])
        latent = self._bottleneck(x)  # (batch, latent_space_dim)
        return keras.Model(image, latent, name="encoder"), shapes

    def _build_decoder(self, shapes):
        """The encoder's mirror image: from the last of its shapes back to the first."""
        latent = keras.Input((self.latent_space_dim,), name="latent")
        x = layers.Dense(int(np.prod(shapes[-1])), name="features")(latent)
        x = layers.Reshape(shapes[-1])(x)  # (batch, *shapes[-1])
        for index in reversed(range(len(self.conv_filters))):
            x = self._deconv_block(x, index, shapes[index])  # (batch, *shapes[index])
        if self.bins_as_channels:
            x = self._channels_to_bins(x)
        x = x / np.sqrt(self.row_weights)
        return keras.Model(latent, x, name="decoder")  # (batch, height, width, channels), linear

    def _conv_block(self, x, index):
        """Convolution, ReLU and BatchNormalization."""
        conv = layers.Conv2D(self.conv_filters[index], name=f"conv_{index}", **self._steps(index))
        return self._activate(conv(x), index)

    def _bottleneck(self, x):
        """The latent of the last feature map; a VAE changes this place."""
        x = layers.Flatten(name="flatten")(x)  # (batch, height * width * filters)
        return layers.Dense(self.latent_space_dim, name="latent")(x)

    def _deconv_block(self, x, index, shape):
        """A _conv_block backwards, to the shape of its input; the last one is linear."""
        deconv = layers.Conv2DTranspose(shape[-1], name=f"deconv_{index}", **self._steps(index))
        x = crop_to(deconv(x), shape, deconv)
        return self._activate(x, index) if index > 0 else x

    def _activate(self, x, index):
        norm = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"norm_{index}")
        return norm(layers.ReLU()(x))

    def _steps(self, index):
        """The kernel, strides and padding of a convolution and of its mirror image."""
        kernel, strides = self.conv_kernels[index], self.conv_strides[index]
        return {"kernel_size": kernel, "strides": strides, "padding": "same"}

    def _bins_to_channels(self, x):
        height, width, channels = self.input_shape
        x = layers.Permute((2, 1, 3))(x)  # (batch, width, height, channels)
        return layers.Reshape((1, width, height * channels))(x)

    def _channels_to_bins(self, x):
        height, width, channels = self.input_shape
        x = layers.Reshape((width, height, channels))(x)
        return layers.Permute((2, 1, 3))(x)  # (batch, height, width, channels)

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
        """Make ready to train with Adam on the mean squared error.

        Args:
            learning_rate: float > 0, or a Keras LearningRateSchedule.
        """
        optimizer = keras.optimizers.Adam(learning_rate, beta_2=BETA_2)
        if self.precision == "float16":  # small gradients would round to zero
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model.compile(optimizer=optimizer, loss=self.weighted_error)

    def weighted_error(self, images, reconstructed):
        """The mean squared error of each image, whose rows count by row_weights."""
        errors = keras.ops.square(images - reconstructed)  # (batch, height, width, channels)
        return keras.ops.mean(self.row_weights * errors, axis=(1, 2, 3))

    def train(
        self, x_train, batch_size, epochs, *, x_validation=None, initial_epoch=0, callbacks=()
    ):
        """Fit the model to reproduce x_train.

        Args:
            x_train, x_validation: float32 (n, height, width, channels), in [0, 1], or Keras
                datasets of (images, images) batches; for these batch_size must be None.
            initial_epoch: how many of the epochs have passed already.
            callbacks: of Keras; each gets the attributes `autoencoder`, which is this one,
                `x_train` and `x_validation`.
        """
        is_array = isinstance(x_train, np.ndarray)
        for callback in callbacks:
            callback.autoencoder = self
            callback.x_train, callback.x_validation = x_train, x_validation
        if isinstance(x_validation, np.ndarray):
            x_validation = (x_validation, x_validation)
        self._set_precision(self.precision)
        try:
            self.model.fit(
                x_train,
                x_train if is_array else None,
                batch_size=batch_size,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=x_validation,
                shuffle=is_array,  # a dataset's order is its own
                callbacks=[*callbacks],
                verbose=0,
            )
        finally:
            self._set_precision("float32")

    def measure(self, images):
        """The loss of images, or of a Keras dataset of (images, images) batches."""
        targets = images if isinstance(images, np.ndarray) else None
        return self.model.evaluate(images, targets, verbose=0)

    def _set_precision(self, precision):
        """Choose the arithmetic of the layers; their weights stay float32."""
        for layer in self.encoder.layers + self.decoder.layers:
            layer.dtype_policy = precision if precision == "float32" else f"mixed_{precision}"

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
        """Write parameters.json and model.weights.h5, both or neither."""
        weights = WeightsBuffer()
        # Of a compiled model Keras 3.15 would save the optimizer too, three times the size.
        keras.Model(self.model.input, self.model.output).save_weights(weights)
        with FileSet() as files:
            files.add(Path(folder) / "model.weights.h5", weights.getbuffer())
            files.add(Path(folder) / "parameters.json", format_json(self.parameters))

    @classmethod
    def load(cls, folder):
        """The autoencoder that save() wrote.

        Raises:
            FileNotFoundError: the folder holds no model.
            UserError: the parameters or weights are damaged or do not fit each other.
        """
        path = Path(folder) / "parameters.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no model in {folder}: run train.py, with --resume if it was interrupted"
            )
        parameters = read_json(path)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(parameters, dict) or parameters.keys() != names:
            raise UserError(
                f"{path} does not hold the parameters of this version ({', '.join(sorted(names))}):"
                " run train.py again"
            )
        try:
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
        if not Path(path).is_file():
            raise FileNotFoundError(f"no weights at {path}: run train.py first")
        try:
            with warnings.catch_warnings():  # Keras 3.15 warns of each layer before it raises
                warnings.simplefilter("ignore", UserWarning)
                self.model.load_weights(path)
        except Exception as error:  # h5py and Keras raise many kinds
            raise UserError(
                f"{path} does not fit the parameters beside it, or is damaged: run train.py again"
            ) from error


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


def crop_to(x, shape, deconv):
    """Cut what a transposed convolution adds if its stride does not divide a side.

    The cut is as long as the convolution's padding was, so that every kernel lies where its
    mirror image lay.
    """
    crop = []
    for axis in (0, 1):
        size, full = shape[axis], x.shape[1 + axis]
        kernel, stride = deconv.kernel_size[axis], deconv.strides[axis]
        before = pad_before(size, kernel, stride) - pad_before(full, kernel, stride)
        crop.append((before, full - size - before))
    return layers.Cropping2D(crop)(x) if np.any(crop) else x


def pad_before(size, kernel, stride):
    """How many zeros "same" padding puts in front of an axis."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2


def check_sizes(name, sizes, count=None):
    """The sizes as a tuple; a UserError unless they are `count` integers in 1..MAX_SIZE."""
    is_list = isinstance(sizes, (list, tuple)) and count in (None, len(sizes))
    integers = (int, np.integer)
    if not is_list or not all(isinstance(n, integers) and 1 <= n <= MAX_SIZE for n in sizes):
        many = "integers" if count is None else f"{count} integers"
        raise UserError(f"{name} must hold {many} in 1..{MAX_SIZE}, got {sizes!r}")
    return tuple(map(int, sizes))


if __name__ == "__main__":
    from train import choose_architecture

    Autoencoder(**choose_architecture((512, 256, 1))).summary()
