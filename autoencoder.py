"""The convolutional autoencoder: its layers, training, saving and loading.

In:  images float32 (n, height, width, channels) in [0, 1].
Out: their reconstructions and latents; a folder with parameters.json and model.weights.h5.

    autoencoder = Autoencoder((512, 256, 1), (16, 32, 64), (3, 3, 3), (2, 2, 2), 128)
"""

import math
import os
import time
import warnings
from pathlib import Path

import numpy as np

from support.files import native_silence, read_json, write_json

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with native_silence:  # TensorFlow 2.21 logs a dozen notices before it reads that level
    import keras
    from keras import layers

    if keras.config.backend() == "tensorflow":  # JAX must not look before its processes join
        keras.distribution.list_devices()

BN_MOMENTUM = 0.9  # Keras's 0.99 needs thousands of steps before inference matches training
BETA_2 = 0.95  # of Adam; with Keras's 0.999 the learning rate that trains best kills the ReLUs
PREDICT_BATCH_SIZE = 32
START_IMAGES = 1500  # at most, for the principal components that training starts from
LOCAL_IMAGES = 200  # of them, for those of each convolution
OFFSET_MARGIN = 1.2  # a feature map's bias over its lowest value seen
MAIN_SHARE = 0.45  # of a convolution's filters start as components, the others at random
MAX_LAYERS = 64  # of a model that is loaded
MAX_MAP_BYTES = 1 << 28  # of one image's largest feature map in a model that is loaded
PRECISIONS = ("float32", "bfloat16", "float16")
BFLOAT16_TIME = 0.8  # of float32's for a matrix product, at most, for choose_precision


class Autoencoder:
    """A convolutional autoencoder with a mirrored encoder and decoder.

    Args:
        input_shape: (height, width, channels), any sizes; odd sides come out as they went in.
        conv_filters, conv_kernels, conv_strides: one entry a convolution; a kernel or a stride
            is an int or (vertical, horizontal).
        latent_space_dim: width of the Dense bottleneck.
    Raises:
        ValueError: lists of different lengths, or a size below 1.
    """

    def __init__(self, input_shape, conv_filters, conv_kernels, conv_strides, latent_space_dim):
        self.input_shape = check_sizes("input_shape", input_shape)
        self.conv_filters = check_sizes("conv_filters", conv_filters)
        self.conv_kernels = check_pairs("conv_kernels", conv_kernels)
        self.conv_strides = check_pairs("conv_strides", conv_strides)
        self.latent_space_dim = check_sizes("latent_space_dim", [latent_space_dim])[0]
        lengths = {len(self.conv_filters), len(self.conv_kernels), len(self.conv_strides)}
        if len(self.input_shape) != 3:
            raise ValueError(f"input_shape must be (height, width, channels), got {input_shape}")
        if len(lengths) != 1 or not self.conv_filters:
            raise ValueError(
                "conv_filters, conv_kernels and conv_strides must have one entry a layer, got "
                f"{len(self.conv_filters)}, {len(self.conv_kernels)}, {len(self.conv_strides)}"
            )
        self.precision = "float32"
        # A first layer that spans all bins takes them as channels: the same sums, as one matrix
        # product. TensorFlow 2.21 asks for hundreds of GB for a kernel that tall.
        self._is_folded = self._spans_all_bins(self.conv_kernels[0]) and self._spans_all_bins(
            self.conv_strides[0]
        )
        self._build()

    def _spans_all_bins(self, size):
        return not isinstance(size, int) and size[0] == self.input_shape[0]

    def _fold(self, x):
        """(height, width, channels) becomes (1, width, height * channels), where that is done."""
        height, width, channels = self.input_shape
        if not self._is_folded:
            return x
        return layers.Reshape((1, width, height * channels))(layers.Permute((2, 1, 3))(x))

    def _unfold(self, x):
        height, width, channels = self.input_shape
        if not self._is_folded:
            return x
        return layers.Permute((2, 1, 3))(layers.Reshape((width, height, channels))(x))

    def _build(self):
        image = keras.Input(self.input_shape, name="image")
        self.encoder, shapes = self._build_encoder(image)
        self.decoder = self._build_decoder(shapes)
        self.model = keras.Model(image, self.decoder(self.encoder(image)), name="autoencoder")

    def _build_encoder(self, image):
        x = self._fold(image)  # (batch, height, width, channels)
        shapes = []
        for index, filters in enumerate(self.conv_filters):
            shapes.append(tuple(x.shape[1:]))
            x = layers.Conv2D(filters, **self._get_steps(index), name=f"conv_{index}")(x)
            x = self._activate(x, index)
        shapes.append(tuple(x.shape[1:]))
        x = layers.Flatten(name="flatten")(x)
        latent = layers.Dense(self.latent_space_dim, name="latent")(x)
        return keras.Model(image, latent, name="encoder"), shapes  # (batch, latent)

    def _build_decoder(self, shapes):
        latent = keras.Input((self.latent_space_dim,), name="latent")
        x = layers.Dense(int(np.prod(shapes[-1])), name="features")(latent)
        x = layers.Reshape(shapes[-1])(x)
        for index in reversed(range(len(self.conv_filters))):
            deconv = layers.Conv2DTranspose(
                shapes[index][2], **self._get_steps(index), name=f"deconv_{index}"
            )
            x = crop_to(deconv(x), shapes[index], deconv)
            if index > 0:
                x = self._activate(x, index)
        return keras.Model(latent, self._unfold(x), name="decoder")

    def _get_steps(self, index):
        """The kernel, strides and padding of a convolution and of its mirror image."""
        kernel, strides = self.conv_kernels[index], self.conv_strides[index]
        if self._is_folded and index == 0:
            kernel, strides = (1, kernel[1]), (1, strides[1])
        return {"kernel_size": kernel, "strides": strides, "padding": "same"}

    def _activate(self, x, index):
        x = layers.ReLU()(x)
        norm = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"norm_{index}")
        return norm(x)

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

    def set_precision(self, precision):
        """Choose the arithmetic of the layers; call it before compile().

        Args:
            precision: one of PRECISIONS; the weights are float32 in each.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        for layer in self.encoder.layers + self.decoder.layers:
            layer.dtype_policy = precision if precision == "float32" else f"mixed_{precision}"

    def compile(self, learning_rate=1e-3):
        """Make ready to train with Adam on the mean squared error.

        Args:
            learning_rate: float > 0 or a keras LearningRateSchedule.
        """
        optimizer = keras.optimizers.Adam(learning_rate, beta_2=BETA_2)
        if self.precision == "float16":  # small gradients would round to zero
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model.compile(optimizer=optimizer, loss="mse", jit_compile=choose_jit())

    def train(
        self, x_train, batch_size, epochs, *, x_validation=None, initial_epoch=0, callbacks=(),
        verbose=0,
    ):  # fmt: skip
        """Fit the model to reproduce x_train.

        Args:
            x_train, x_validation: float32 (n, height, width, channels), in [0, 1], or Batches,
                which have their own batch size.
            initial_epoch: of `epochs`, how many have passed already.
        Returns:
            The keras History.
        """
        data = {"x": x_train, "shuffle": False}
        callbacks = list(callbacks)
        if isinstance(x_train, Batches):
            # Keras 3.15 calls on_epoch_end of a PyDataset more than once an epoch.
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=x_train.start_epoch))
        else:
            data = {"x": x_train, "y": x_train, "batch_size": batch_size, "shuffle": True}
        data["validation_data"] = x_validation
        if x_validation is not None and not isinstance(x_validation, Batches):
            data["validation_data"] = (x_validation, x_validation)
        return self.model.fit(
            **data, epochs=epochs, initial_epoch=initial_epoch, callbacks=callbacks,
            verbose=verbose,
        )  # fmt: skip

    def start_as_pca(self, images, seed=0):
        """Set the weights so that the untrained model is a principal component analysis.

        The first MAIN_SHARE of each convolution's filters take the principal components of the
        patches it sees, with a bias that keeps them above zero, where ReLU changes nothing;
        BatchNormalization takes the bias off again and stays as it is from then on. The Dense
        layers hold the components of the last feature maps, and the decoder is the transpose of
        it all. The other filters keep their random start, and no main filter reads them yet.

        Args:
            images: float32 (n, height, width, channels), in [0, 1].
        """
        rng = np.random.default_rng(seed)
        if len(images) > START_IMAGES:
            images = images[np.sort(rng.choice(len(images), START_IMAGES, replace=False))]
        local_images = images[:: math.ceil(len(images) / LOCAL_IMAGES)]
        features = local_images  # what a level sees
        if self._is_folded:
            n, height, width, channels = features.shape
            features = features.transpose(0, 2, 1, 3).reshape(n, 1, width, height * channels)
        n_main = features.shape[-1]  # of its channels are components
        below = np.zeros(n_main, np.float32)  # the offset of the level below
        for index in range(len(self.conv_filters)):
            conv = self.encoder.get_layer(f"conv_{index}")
            kernel, n_components = compute_local_components(conv, features, n_main)
            conv.set_weights([kernel, np.zeros(len(kernel.T))])
            self._mirror_kernel(index, kernel, n_main, n_components, below)
            n_main = n_components
            maps = predict_in_batches(keras.Model(self.encoder.input, conv.output), local_images)
            below = -np.minimum(maps.min(axis=(0, 1, 2)), 0) * OFFSET_MARGIN
            below[n_main:] = 0  # ReLU is to bend these from the first step
            conv.set_weights([kernel, below])
            self._subtract_offset(index, np.maximum(maps + below, 0), below)
            features = maps
        self._set_dense_components(images, n_main, seed)
        self.hold_normalisations()

    def hold_normalisations(self):
        """Keep the normalisations as they are while the rest trains, as start_as_pca does."""
        for layer in self.encoder.layers + self.decoder.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False  # in Keras this means the stored statistics, too

    def _mirror_kernel(self, index, kernel, n_below, n_main, offset):
        """Give a decoder level the transpose of its encoder level's main filters."""
        deconv = self.decoder.get_layer(f"deconv_{index}")
        mirrored, _ = deconv.get_weights()  # (height, width, channels below, filters)
        mirrored[:, :, :n_below, :n_main] = kernel[:, :, :n_below, :n_main]
        mirrored[:, :, :n_below, n_main:] = 0
        deconv.set_weights([mirrored, offset])

    def _subtract_offset(self, index, maps, offset):
        """Let the normalisations after level `index` subtract an offset."""
        mean, variance = maps.mean(axis=(0, 1, 2)), maps.var(axis=(0, 1, 2))
        norms = [self.encoder.get_layer(f"norm_{index}")]
        if index + 1 < len(self.conv_filters):
            norms.append(self.decoder.get_layer(f"norm_{index + 1}"))
        for norm in norms:
            gamma = np.sqrt(variance + norm.epsilon)
            norm.set_weights([gamma, mean - offset, mean, variance])

    def _set_dense_components(self, images, n_main, seed):
        from sklearn.decomposition import PCA

        last_maps = self.encoder.get_layer("flatten").input
        maps = predict_in_batches(keras.Model(self.encoder.input, last_maps), images)
        features = maps[..., :n_main].reshape(len(maps), -1)
        n_components = min(self.latent_space_dim, *features.shape)
        pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(features)
        components = pca.components_.reshape(n_components, *maps.shape[1:3], n_main)
        latent, features = self.encoder.get_layer("latent"), self.decoder.get_layer("features")
        kernel, bias = (weights.copy() for weights in features.get_weights())
        kernel = kernel.reshape(-1, *maps.shape[1:])  # (latent, height, width, filters)
        kernel[:n_components, ..., :n_main] = components
        bias.reshape(maps.shape[1:])[..., :n_main] = pca.mean_.reshape(components.shape[1:])
        features.set_weights([kernel.reshape(len(kernel), -1), bias])
        inverse = np.zeros_like(kernel)  # not kernel itself, which JAX may read only now
        inverse[:n_components, ..., :n_main] = components
        inverse = inverse.reshape(len(inverse), -1)
        latent.set_weights([inverse.T, -inverse @ bias])

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
        parameters_path, weights_path = (
            Path(folder) / name for name in ("parameters.json", "model.weights.h5")
        )
        if not parameters_path.is_file():
            raise FileNotFoundError(f"no model in {folder}: run train.py first")
        n_weight_bytes = check_is_there(weights_path).stat().st_size
        try:
            parameters = read_json(parameters_path)
            check_size(parameters, n_weight_bytes)
            autoencoder = cls(**parameters)
        except (TypeError, KeyError, OverflowError, ValueError) as error:
            raise ValueError(
                f"{parameters_path} is no set of parameters for the weights beside it: {error}"
            ) from error
        autoencoder.load_weights(weights_path)
        return autoencoder

    def load_weights(self, path):
        """Load weights of the same architecture from a .weights.h5 file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, refers to other files, or is of another architecture.
        """
        check_is_there(path)
        try:
            check_weights_file(path)
            with warnings.catch_warnings():  # Keras 3.15 warns of each layer before it raises
                warnings.simplefilter("ignore", UserWarning)
                self.model.load_weights(path)
        except (ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not fit the parameters beside it, or is damaged: run train.py again"
            ) from error


def check_is_there(path):
    """The Path of a file of weights, or a FileNotFoundError where there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: run train.py first")
    return Path(path)


def check_size(parameters, n_file_bytes):
    """Raise a ValueError where a model would take more memory than its weights' file excuses.

    Args:
        parameters: the constructor's arguments by name, from a file.
        n_file_bytes: size of the file of weights.
    """
    height, width, channels = check_sizes("input_shape", parameters["input_shape"])
    filters = check_sizes("conv_filters", parameters["conv_filters"])
    kernels = check_pairs("conv_kernels", parameters["conv_kernels"])
    strides = check_pairs("conv_strides", parameters["conv_strides"])
    (latent_space_dim,) = check_sizes("latent_space_dim", [parameters["latent_space_dim"]])
    if len(filters) > MAX_LAYERS:
        raise ValueError(f"conv_filters must have at most {MAX_LAYERS} layers, got {len(filters)}")
    n_weights, largest = 0, height * width * channels
    for n_filters, kernel, stride in zip(filters, kernels, strides, strict=True):
        (rows, columns), (down, right) = (
            (size, size) if isinstance(size, int) else size for size in (kernel, stride)
        )
        n_weights += 2 * rows * columns * channels * n_filters  # there and back
        height, width, channels = -(-height // down), -(-width // right), n_filters
        largest = max(largest, height * width * channels)
    n_weights += 2 * height * width * channels * latent_space_dim
    if 4 * n_weights > n_file_bytes or 4 * largest > MAX_MAP_BYTES:
        raise ValueError(
            f"they describe a model of {n_weights:.3g} weights, with {largest:.3g} numbers in a "
            f"feature map, but the weights' file has {n_file_bytes} bytes"
        )


def check_weights_file(path):
    """Raise a ValueError where an HDF5 file refers to others, or claims more than it holds."""
    import h5py

    n_bytes = 0

    def check(name, item):
        nonlocal n_bytes
        if isinstance(item, h5py.Dataset):
            n_bytes += item.nbytes
            if item.external or item.is_virtual or item.dtype.hasobject:
                raise ValueError(f"{name} does not hold its numbers")
        elif any(type(item.get(inner, getlink=True)) is not h5py.HardLink for inner in item):
            raise ValueError(f"{name} has links to elsewhere")

    with h5py.File(path) as file:
        check("the file", file)
        file.visititems(check)
    if n_bytes > Path(path).stat().st_size:
        raise ValueError("it is shorter than what it claims to hold")


class Batches(keras.utils.PyDataset):
    """(images, images) batches of all items once an epoch.

    With TensorFlow the next batches are drawn while one trains.
    An epoch's batches follow from the seed and its number alone, so that a run can go on from
    any epoch.

    Args:
        draw: (indices, numpy Generator) to float32 (len(indices), height, width, channels).
        n_items: how many there are to draw.
        batch_size: items in a batch; the last one holds the rest.
        seed: of the order and of draw; None keeps the items in their order.
        share: (index, count) of the machine, which takes every count-th item of each batch.
        multiple: what each batch is rounded up to, with items from the epoch's beginning.
    """

    def __init__(self, draw, n_items, batch_size, seed, *, share=(0, 1), multiple=1):
        super().__init__()
        self.draw = draw
        self.n_items = n_items
        self.batch_size = -(-batch_size // multiple) * multiple
        self.seed = seed
        self.share = share
        self.multiple = multiple
        self.start_epoch(0)

    def __len__(self):
        return -(-self.n_items // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        n_left = -(-(self.n_items - start) // self.multiple) * self.multiple
        places = np.arange(start, start + min(self.batch_size, n_left)) % self.n_items
        first, count = self.share
        rng = np.random.default_rng((self.seed or 0, self.epoch, index, first))
        images = self.draw(self.order[places[first::count]], rng)
        return images, images

    def start_epoch(self, epoch, logs=None):
        """Choose the epoch that the batches are drawn for."""
        self.epoch = epoch
        self.order = np.arange(self.n_items)
        if self.seed is not None:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.n_items)


def choose_jit():
    """Keras's jit_compile for this backend.

    On processors TensorFlow's own convolutions are up to twice as fast as those of XLA, which
    Keras would choose.
    """
    return False if keras.config.backend() == "tensorflow" else "auto"


def choose_precision():
    """bfloat16 where it multiplies matrices clearly faster than float32, else float32."""
    seconds = {dtype: time_matrix_product(dtype) for dtype in ("float32", "bfloat16")}
    return "bfloat16" if seconds["bfloat16"] < BFLOAT16_TIME * seconds["float32"] else "float32"


def time_matrix_product(dtype, size=1024, n_products=8, n_rounds=5):
    """Seconds that one product of two square matrices takes, the best of some rounds."""
    matrix = keras.ops.full((size, size), 1 / size, dtype)
    times = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        product = matrix
        for _ in range(n_products):
            product = keras.ops.matmul(product, matrix)
        float(product[0, 0])  # waits for the device
        times.append((time.perf_counter() - started) / n_products)
    return min(times)


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


def crop_to(x, shape, deconv):
    """Cut what a transposed convolution made too long, where its stride did not divide a side.

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


def check_sizes(name, sizes):
    """The sizes as a list of ints, or a ValueError where one is below 1."""
    sizes = list(sizes)
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"{name} must hold integers of at least 1, got {sizes}")
    return [int(size) for size in sizes]


def check_pairs(name, sizes):
    """The sizes, each an int or a list of two, or a ValueError where one is something else."""
    checked = []
    for size in sizes:
        pair = check_sizes(name, [size] if np.isscalar(size) else size)
        if len(pair) > 2:
            raise ValueError(f"{name} must hold integers or pairs, got {size}")
        checked.append(pair[0] if len(pair) == 1 else pair)
    return checked


def compute_local_components(conv, features, n_main):
    """A kernel whose first filters are the principal components of the patches a layer sees.

    Args:
        conv: the Conv2D layer, padding "same".
        features: float32 (n, height, width, channels), its input.
        n_main: how many of its input channels hold components; the others are left out.
    Returns:
        (float32 (height, width, channels, filters), how many filters hold components).
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
    n_components = min(math.ceil(MAIN_SHARE * kernel.shape[-1]), vectors.shape[1])
    kernel[..., :n_components] = 0
    components = vectors[:, ::-1][:, :n_components].reshape(rows, columns, n_main, n_components)
    kernel[crops[0], crops[1], :n_main, :n_components] = components
    return kernel, n_components
