import numpy as np

from training.batches import Batches
from training.data import Windows


def draw_epoch(batches):
    return [images.tolist() for images, _ in (batches[index] for index in range(len(batches)))]


def test_batches_hold_every_item_once_an_epoch_in_a_new_order():
    batches = Batches(np.arange(7), 3, seed=1)

    first = draw_epoch(batches)
    batches.start_epoch(1)
    second = draw_epoch(batches)

    assert [len(batch) for batch in first] == [3, 3, 1]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == [*range(7)]
    assert first != second


def test_batches_follow_from_the_seed_and_the_epoch_alone():
    class Drawn(Windows):
        def __init__(self):
            self.images = np.arange(7)

        def draw(self, indices, rng):
            return indices + rng.random(len(indices))

    first, again, other = (Batches(Drawn(), 3, seed) for seed in (1, 1, 2))
    draw_epoch(first)  # an epoch more than the others
    for batches in (first, again, other):
        batches.start_epoch(1)

    assert draw_epoch(first) == draw_epoch(again) != draw_epoch(other)


def test_batches_without_a_seed_keep_the_order_and_are_shared_evenly():
    shares = [
        draw_epoch(Batches(np.arange(7), 3, None, share=(index, 2), multiple=2))
        for index in range(2)
    ]

    # Batches of 3 are rounded up to 4, the last one to 4 with the first item.
    assert shares == [[[0, 2], [4, 6]], [[1, 3], [5, 0]]]
