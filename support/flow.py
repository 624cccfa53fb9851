"""A flow: a network that draws sequences, given what is known of them.

In:  noise, what is given at each step, and a style.
Out: sequences, float32 (n, steps, n_drawn); the file of what has learned with a flow.

    flow = Flow(n_drawn=128, n_given=1, n_style=129, filters=256, dilations=(1, 2, 4))
    sequences = flow.draw(noise, given, style, known)

Rectified flow (Liu et al. 2022, Lipman et al. 2022): on the straight lines from noise, at time 0,
to data, at time 1, the network has learned the mean velocity at each place and time. If a sequence
has more numbers at a step than the network has filters, not all of them pass through it: then it
adds to the best velocity for independent data of variance 1 (as Karras et al. 2022 have it for
diffusion), and scales each number.
"""

import dataclasses
import json
import math

import numpy as np

from support.files import load_arrays, reading, write_arrays
from support.keras import keras

layers, ops = keras.layers, keras.ops

N_EULER = 32  # steps from noise to data
N_FREQUENCIES = 32  # that tell the network the time
N_CONDITION = 128  # numbers that tell each convolution of time and style


@dataclasses.dataclass(eq=False)
class Flow:
    """The velocity of sequences, by a convolutional network with residual blocks.

    Args:
        n_drawn: numbers drawn at each step.
        n_given: numbers that are given at each step.
        n_style: numbers of a style, which a sequence has as a whole or at each step; 0: none.
        filters: of each convolution.
        dilations: steps from tap to tap, of a block of two convolutions each.
    """

    n_drawn: int
    n_given: int
    n_style: int
    filters: int
    dilations: tuple

    def __post_init__(self):
        self.dilations = tuple(self.dilations)
        place = keras.Input((None, self.n_drawn), name="place")
        given = keras.Input((None, self.n_given), name="given")
        time = keras.Input((1,), name="time")
        frequencies = np.geomspace(1, 1000, N_FREQUENCIES, dtype=np.float32)
        angles = layers.Reshape((1, N_FREQUENCIES))(time * frequencies)
        waves = layers.Concatenate()([ops.sin(angles), ops.cos(angles)])
        condition = layers.Dense(N_CONDITION)(layers.Dense(N_CONDITION, "silu")(waves))
        inputs = {"place": place, "given": given, "time": time}
        if self.n_style:
            inputs["style"] = keras.Input((None, self.n_style), name="style")
            condition = condition + layers.Dense(N_CONDITION)(inputs["style"])
        condition = layers.Activation("silu")(condition)
        # Scales and shifts of what each convolution sees, 0 at first.
        n_convs = 2 * len(self.dilations)
        changes = layers.Dense(2 * n_convs * self.filters, kernel_initializer="zeros")(condition)
        changes = iter(ops.split(changes, 2 * n_convs, axis=-1))
        t = layers.Reshape((1, 1))(time)
        variance = ops.square(t) + ops.square(1 - t)  # of a place, if that of data is 1
        is_narrow = self.n_drawn > self.filters
        seen = place / ops.sqrt(variance) if is_narrow else place
        x = layers.Dense(self.filters)(layers.Concatenate()([seen, given]))
        for dilation in self.dilations:
            y = self._convolve(x, next(changes), next(changes), dilation)
            x = x + self._convolve(y, next(changes), next(changes), dilation, "zeros")
        x = layers.LayerNormalization()(x)
        velocity = layers.Dense(self.n_drawn, kernel_initializer="zeros")(x)
        if is_narrow:
            change = layers.Dense(self.n_drawn, kernel_initializer="zeros")(x)
            velocity = velocity + ((2 * t - 1) / variance + change) * place
        self.network = keras.Model(inputs, velocity, name="flow")
        self.sampler = Sampler(self.network)

    def _convolve(self, x, scale, shift, dilation, initializer="glorot_uniform"):
        """A convolution of what is normalised, and changed as time and style tell."""
        x = layers.LayerNormalization(center=False, scale=False)(x)
        x = layers.Activation("silu")(x * (1 + scale) + shift)
        options = {"padding": "same", "use_bias": False, "kernel_initializer": initializer}
        return layers.Conv1D(self.filters, 3, dilation_rate=dilation, **options)(x)

    @property
    def reach(self):
        """Steps to either side that a velocity depends on."""
        return 2 * sum(self.dilations)

    def draw(self, noise, given, style=None, known=None, *, n_euler=N_EULER, guidance=1.0):
        """Sequences that go with what is given.

        Args:
            noise: float32 (n, steps, n_drawn): standard normal, or less for what is more typical;
                where steps are known, these.
            given: float32 (n, steps, n_given).
            style: float32 (n, 1 or steps, n_style); zeros: none; None for a flow without styles.
            known: bool (n, steps), which stay; None: none.
            guidance: how much further than without the style the velocity goes towards it: 1 is
                as learned (Ho and Salimans 2022).
        Returns:
            float32 (n, steps, n_drawn).
        """
        inputs = {"place": noise, "given": given, "times": np.linspace(0, 1, n_euler + 1)}
        inputs["is_drawn"] = np.ones(noise.shape[:2]) if known is None else ~known
        if self.n_style:
            inputs["style"] = style
        if guidance != 1:
            inputs["guidance"] = guidance
        inputs = {name: np.asarray(value, np.float32) for name, value in inputs.items()}
        return self.sampler.predict_on_batch(inputs)


class Sampler(keras.Model):
    """Euler's way along a network's velocities, as one computation: with a call for each step,
    a processor takes a third longer, and a GPU waits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, inputs):
        """Where the way ends that begins at inputs["place"]; see Flow.draw."""
        times, is_drawn = inputs["times"], inputs["is_drawn"][..., None]
        fixed = {name: inputs[name] for name in ("given", "style") if name in inputs}
        is_guided = "guidance" in inputs
        if is_guided:  # the other half is without a style
            plain = {**fixed, "style": ops.zeros_like(fixed["style"])}
            fixed = {name: ops.concatenate([fixed[name], plain[name]]) for name in fixed}

        def step(index, place):
            places = ops.concatenate([place, place]) if is_guided else place
            time = ops.full((ops.shape(places)[0], 1), times[index])
            velocity = self.network({"place": places, "time": time, **fixed}, training=False)
            if is_guided:
                styled, plain = ops.split(velocity, 2)
                velocity = plain + inputs["guidance"] * (styled - plain)
            return place + (times[index + 1] - times[index]) * is_drawn * velocity

        return ops.fori_loop(0, ops.shape(times)[0] - 1, step, inputs["place"])


def choose_filters(n_steps, limits):
    """About as many as the root of the training steps, within limits: few learn less by heart."""
    return int(np.clip(2 ** round(math.log2(math.sqrt(n_steps))), *limits))


def save_learned(path, learned):
    """Write a NamedTuple that has a Flow and arrays."""
    arrays = {f"weight_{i}": w for i, w in enumerate(learned.flow.network.get_weights())}
    arrays |= {name: value for name, value in learned._asdict().items() if name != "flow"}
    write_arrays(path, flow=json.dumps(dataclasses.asdict(learned.flow)), **arrays)


def load_learned(kind, path, if_missing=None):
    """The NamedTuple of a kind that save_learned() wrote.

    Raises:
        FileNotFoundError: there is none; if_missing is the remedy.
        UserError: it is damaged, or of an earlier version.
    """
    with reading(path, "run train.py again", if_missing):
        arrays = load_arrays(path)
        flow = Flow(**json.loads(arrays.pop("flow").item()))
        n_weights = len(flow.network.weights)
        flow.network.set_weights([arrays.pop(f"weight_{i}") for i in range(n_weights)])
        return kind(flow, **arrays)
