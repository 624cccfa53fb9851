"""A flow: a network that draws sequences, given what is known of them.

In:  noise, what is given at each step, and a style.
Out: sequences, float32 (n, steps, n_drawn).

    flow = Flow(n_drawn=128, n_given=1, n_style=129, filters=256)
    sequences = flow.draw(noise, given, style, known)

Rectified flow (Liu et al. 2022, Lipman et al. 2022): on the straight lines from noise, at time 0,
to data, at time 1, the network has learned the mean velocity at each place and time.
"""

import dataclasses

import numpy as np

from support.keras import keras

layers, ops = keras.layers, keras.ops

DILATIONS = (1, 2, 4, 8, 4, 2)  # of a block each: 42 steps to either side are seen
N_EULER = 32  # steps from noise to data
N_FREQUENCIES = 32  # that tell the network the time


@dataclasses.dataclass(eq=False)
class Flow:
    """The velocity of sequences, by a convolutional network with residual blocks.

    Args:
        n_drawn: numbers drawn at each step.
        n_given: numbers that are given at each step.
        n_style: numbers of a style, which a sequence has as a whole or at each step.
        filters: of each convolution.
        dilations: steps from tap to tap, of a block of two convolutions each.
    """

    n_drawn: int
    n_given: int
    n_style: int
    filters: int
    dilations: tuple = DILATIONS

    def __post_init__(self):
        self.dilations = tuple(self.dilations)
        place = keras.Input((None, self.n_drawn), name="place")
        given = keras.Input((None, self.n_given), name="given")
        style = keras.Input((None, self.n_style), name="style")
        time = keras.Input((1,), name="time")
        frequencies = np.geomspace(1, 1000, N_FREQUENCIES, dtype=np.float32)
        angles = layers.Reshape((1, N_FREQUENCIES))(time * frequencies)
        waves = layers.Concatenate()([ops.sin(angles), ops.cos(angles)])
        how = layers.Dense(self.filters)(layers.Dense(self.filters, "silu")(waves))
        how = layers.Activation("silu")(how + layers.Dense(self.filters)(style))
        # Scales and shifts of what each convolution sees, 0 at first.
        n_convs = 2 * len(self.dilations)
        changes = layers.Dense(2 * n_convs * self.filters, kernel_initializer="zeros")(how)
        changes = iter(ops.split(changes, 2 * n_convs, axis=-1))
        x = layers.Dense(self.filters)(layers.Concatenate()([place, given]))
        for dilation in self.dilations:
            y = self._convolve(x, next(changes), next(changes), dilation)
            x = x + self._convolve(y, next(changes), next(changes), dilation, "zeros")
        x = layers.LayerNormalization()(x)
        velocity = layers.Dense(self.n_drawn, kernel_initializer="zeros", name="velocity")(x)
        inputs = {"place": place, "given": given, "style": style, "time": time}
        self.network = keras.Model(inputs, velocity, name="flow")

    def _convolve(self, x, scale, shift, dilation, initializer="glorot_uniform"):
        """A convolution of what is normalised, and changed as time and style tell."""
        x = layers.LayerNormalization(center=False, scale=False)(x)
        x = layers.Activation("silu")(x * (1 + scale) + shift)
        options = {"padding": "same", "use_bias": False, "kernel_initializer": initializer}
        return layers.Conv1D(self.filters, 3, dilation_rate=dilation, **options)(x)

    @property
    def parameters(self):
        """The constructor's arguments by name."""
        return dataclasses.asdict(self)

    def draw(self, noise, given, style, known=None, *, n_euler=N_EULER, guidance=1.0):
        """Sequences that go with what is given.

        Args:
            noise: float32 (n, steps, n_drawn): standard normal, or less for what is more typical;
                where steps are known, these.
            given: float32 (n, steps, n_given).
            style: float32 (n, 1 or steps, n_style); zeros: none.
            known: bool (n, steps), which stay; None: none.
            guidance: how much further than without the style the velocity goes towards it: 1 is
                as learned (Ho and Salimans 2022).
        Returns:
            float32 (n, steps, n_drawn).
        """
        place, n = noise.astype(np.float32), len(noise)
        is_drawn = 1.0 if known is None else 1.0 - known[..., np.newaxis].astype(np.float32)
        if guidance != 1:
            style = np.concatenate([style, np.zeros_like(style)])
            given = np.concatenate([given, given])
        times = np.linspace(0, 1, n_euler + 1, dtype=np.float32)
        for time, after in zip(times[:-1], times[1:], strict=True):
            velocity = self._measure_velocity(place, given, style, time)
            if guidance != 1:
                styled, plain = velocity[:n], velocity[n:]
                velocity = plain + guidance * (styled - plain)
            place = place + (after - time) * is_drawn * velocity
        return place

    def _measure_velocity(self, place, given, style, time):
        place = np.tile(place, (len(given) // len(place), 1, 1))
        inputs = {"place": place, "given": given, "style": style}
        inputs["time"] = np.full((len(place), 1), time, np.float32)
        return self.network.predict_on_batch(inputs)
