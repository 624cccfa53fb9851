"""The batches of an epoch. They follow from the seed and its number, so a run can be resumed.

In:  images, or Windows that draw new ones each epoch.
Out: (images, images) batches for Keras.

    autoencoder.train(Batches(images, 16, seed=0), None, epochs=10)
"""

import numpy as np

from autoencoder import keras
from training.data import Windows


class Batches(keras.utils.PyDataset):
    """(images, images) batches of all items, once an epoch.

    The next batches are drawn while one trains, by workers: without them tf.data's autotuning
    thread, which sleeps twice as long each time, would hold up the end of an epoch (2.21).

    Args:
        images: float32 (n, height, width, channels), an array or Pieces, or Windows.
        batch_size: items in a batch; the last one holds the rest.
        seed: of the order and the windows; None keeps the items in their order.
        share: (index, count) of the process, which takes every count-th item of each batch.
        multiple: what each batch is rounded up to, with items from the epoch's beginning.
    """

    def __init__(self, images, batch_size, seed, *, share=(0, 1), multiple=1):
        super().__init__(workers=2)
        self.images = images
        self.batch_size = -(-batch_size // multiple) * multiple
        self.seed = seed
        self.share = share
        self.multiple = multiple
        self.start_epoch(0)

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        n_items = len(self.images)
        start = index * self.batch_size
        n_left = -(-(n_items - start) // self.multiple) * self.multiple
        places = np.arange(start, start + min(self.batch_size, n_left)) % n_items
        first, count = self.share
        indices = self.order[places[first::count]]
        if isinstance(self.images, Windows):
            rng = np.random.default_rng((self.seed or 0, self.epoch, index, first))
            images = self.images.draw(indices, rng)
        else:
            images = self.images[indices]
        return images, images  # (batch, height, width, channels) each

    def start_epoch(self, epoch, logs=None):
        """Choose the epoch that the batches are drawn for."""
        self.epoch = epoch
        self.order = np.arange(len(self.images))
        if self.seed is not None:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))

    def make_callback(self):
        """The callback that starts each epoch; Keras 3.15 calls on_epoch_end more than once."""
        return keras.callbacks.LambdaCallback(on_epoch_begin=self.start_epoch)
