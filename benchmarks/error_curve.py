"""The held-out error over the seconds of a training run.

In:  held-out images, and the model that trains.
Out: (seconds, mean squared error) points.

    curve = ErrorCurve(x_held_out, interval_s=10)
    train(x_train, callbacks=[*make_callbacks(), curve])
"""

import time

from autoencoder import keras, predict_in_batches
from benchmarks.held_out import measure_error


class ErrorCurve(keras.callbacks.Callback):
    """Measures the held-out error now and then; the time that this takes does not count.

    Args:
        images: float32 (n, height, width, channels), held out.
        row_weights: of measure_error.
        interval_s: seconds of training from point to point.
        budget_s: seconds after which training stops, with the weights of the lowest point. None
            trains as planned, and the first point is that of the weights it starts with.
    """

    def __init__(self, images, row_weights, interval_s, budget_s=None):
        super().__init__()
        self.images = images
        self.row_weights = row_weights
        self.interval_s = interval_s
        self.budget_s = budget_s
        self.points = []
        self.n_steps = 0
        self._best_weights = None
        self._paused_s = 0.0
        self._started = time.perf_counter()  # so that building and starting the model counts

    @property
    def seconds(self):
        """Seconds of training so far."""
        return time.perf_counter() - self._started - self._paused_s

    def on_train_begin(self, logs=None):
        if self.budget_s is None:
            self._measure()

    def on_train_batch_end(self, batch, logs=None):
        self.n_steps += 1
        seconds = self.seconds
        last = self.points[-1][0] if self.points else 0
        if self.budget_s is not None and seconds >= self.budget_s:
            self.model.stop_training = True
        elif seconds - last >= self.interval_s:
            self._measure()

    def on_train_end(self, logs=None):
        self._measure()
        if self.budget_s is not None:
            self.model.set_weights(self._best_weights)

    def _measure(self):
        seconds, started = self.seconds, time.perf_counter()
        model = self.autoencoder.model if hasattr(self, "autoencoder") else self.model
        error = measure_error(self.images, predict(model, self.images), self.row_weights)
        if self.budget_s is not None and all(error < point[1] for point in self.points):
            self._best_weights = self.model.get_weights()
        self.points.append((seconds, error))
        self._paused_s += time.perf_counter() - started


def predict(model, images):
    """A model's reconstructions of images, float32 (n, height, width, channels), in [0, 1]."""
    return predict_in_batches(model, images).clip(0, 1)
