"""The two flows of a model, fitted: one draws detail, one draws new music.

In:  an autoencoder and Windows; the latents of tracks.
Out: a Detail and a Prior, their checkpoints.

    prior = train_prior(tracks, latents, held_out=others, path="model/prior_checkpoint.npz")
"""

import math

import numpy as np

from support.errors import UserError
from support.keras import choose_compilation, keras, make_schedule
from support.prior import Prior
from training.callbacks import make_callbacks
from training.checkpoint import Checkpoint
from training.sequences import N_FRAMES, FrameSequences, LatentSequences

EPOCHS = 20
LEARNING_RATE = 1e-3
BETA_2 = 0.98  # of Adam
PATIENCE = 5  # epochs
BATCH_SIZE = 32  # sequences
DETAIL_PASSES = 3  # over the frames of the windows
DETAIL_BATCHES = 60, 900  # in all EPOCHS, at least and at most: 10 minutes on two cores
DETAIL_CHECKED = 16  # batches of what is held out, at most
PRIOR_PASSES = 300  # over the latents of the tracks
PRIOR_BATCHES = 1000, 5000  # in all EPOCHS, at least and at most: 20 to 25 minutes on two cores
SEED = 0


def train_detail(autoencoder, windows, held_out=None, *, epochs=EPOCHS, path=None, seed=SEED):
    """Fit a Detail to what Windows lose in an autoencoder.

    Args:
        held_out: other Windows, or None.
        epochs, path: see fit_flow.
    Returns:
        The Detail with its best weights by what is held out, or None without epochs.
    """
    keras.utils.set_random_seed(seed)
    if epochs == 0:
        return None
    n_frames, batch_frames = len(windows.frames), BATCH_SIZE * N_FRAMES
    n_batches = choose_batches(DETAIL_PASSES * n_frames / batch_frames, DETAIL_BATCHES)
    x_train = FrameSequences(None, autoencoder, windows, BATCH_SIZE, n_batches, seed)
    detail, x_validation = x_train.detail, None
    if held_out:
        n_checked = min(DETAIL_CHECKED, -(-len(held_out.frames) // batch_frames))
        how = BATCH_SIZE, n_checked, seed
        x_validation = FrameSequences(detail, autoencoder, held_out, *how, is_training=False)
    print(f"detail: {detail.flow.network.count_params():,} parameters", flush=True)
    fit_flow(detail.flow.network, x_train, x_validation, epochs, path)
    return detail


def train_prior(tracks, latents, varied=(), held_out=(), *, epochs=EPOCHS, path=None, seed=SEED):
    """Fit a Prior to the latents of tracks.

    Args:
        tracks: the TrainingTracks.
        latents: a list of float32 (steps, latent_space_dim), each of a track.
        varied: further ones, of the same tracks.
        held_out: those of other tracks.
        epochs, path: see fit_flow.
    Returns:
        The Prior with its best weights by what is held out, or None without epochs, or if no two
        steps differ.
    """
    keras.utils.set_random_seed(seed)
    if epochs == 0:
        return None
    try:
        prior = Prior.prepare(tracks, latents)
    except UserError as error:
        print(f"no prior: {error}", flush=True)
        return None
    n_steps = sum(map(len, latents))
    batch_steps = BATCH_SIZE * prior.window
    n_batches = choose_batches(PRIOR_PASSES * n_steps / batch_steps, PRIOR_BATCHES)
    x_train = LatentSequences(prior, [*latents, *varied], BATCH_SIZE, n_batches, seed)
    x_validation = None
    if held_out:
        how = BATCH_SIZE, -(-2 * sum(map(len, held_out)) // batch_steps), seed
        x_validation = LatentSequences(prior, held_out, *how, is_training=False)
    print(
        f"prior: {prior.flow.network.count_params():,} parameters; {n_steps} steps of "
        f"{len(latents)} tracks to train on, of {len(held_out)} others to validate on",
        flush=True,
    )
    fit_flow(prior.flow.network, x_train, x_validation, epochs, path)
    return prior


def choose_batches(n_batches, limits):
    """Batches of an epoch, so that EPOCHS of them are about so many, within limits."""
    return math.ceil(np.clip(n_batches, *limits) / EPOCHS)


def fit_flow(network, x_train, x_validation, epochs, path):
    """Fit the network of a Flow to Sequences.

    Args:
        epochs: of len(x_train) batches.
        path: of its checkpoints, or None; from the one of the same Sequences it goes on.
    """
    run = {"epochs": epochs, "patience": PATIENCE, "sequences": x_train.fingerprint}
    checkpoint = Checkpoint.load(path) if path else None
    checkpoint = checkpoint if checkpoint and checkpoint.run == run else None
    callbacks = make_callbacks(patience=PATIENCE, path=path, run=run, checkpoint=checkpoint)
    schedule = make_schedule(LEARNING_RATE, epochs * len(x_train))
    optimizer = keras.optimizers.AdamW(schedule, beta_2=BETA_2, clipnorm=1.0)
    network.compile(optimizer, "mse", jit_compile=choose_compilation())
    optimizer.build(network.trainable_variables)  # before the first step, see Autoencoder.compile
    if checkpoint:
        checkpoint.restore(network)
    starting = keras.callbacks.LambdaCallback(on_epoch_begin=x_train.start_epoch)
    for callback in callbacks:
        callback.x_train, callback.x_validation = x_train, x_validation
    network.fit(
        x_train,
        epochs=epochs,
        initial_epoch=checkpoint.count_finished_epochs() if checkpoint else 0,
        validation_data=x_validation,
        shuffle=False,  # their order is their own
        callbacks=[starting, *callbacks],
        verbose=0,
    )
