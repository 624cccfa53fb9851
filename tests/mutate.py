"""Change the program one place at a time, in a copy, and see whether a test notices.

In:  the table below.
Out: a line for each change: "killed" and the test that failed, "SURVIVED", or "text not found";
     exit status 1 unless all are killed.

    python tests/mutate.py              # all; half an hour on two cores
    python tests/mutate.py training/    # those of files whose path begins so
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 900  # seconds after which a change is taken to let the tests hang
NO_TESTS = 5  # pytest's exit status if it selects none
MUTATIONS = [  # (file, its text, what takes its place, test files that should notice)
    # Reading audio.
    (
        "preprocess.py",
        "range(0, n_held - self.n_samples + 1, self.n_samples)",
        "range(0, n_held - self.n_samples, self.n_samples)",
        "preprocess",
    ),
    ("preprocess.py", "2 * n_held >= self.n_samples", "2 * n_held > self.n_samples", "preprocess"),
    (
        "preprocess.py",
        "self._pad(array, (0, num_missing_items))",
        "self._pad(array, (num_missing_items, 0))",
        "preprocess",
    ),
    ("support/audio.py", "CUTOFF = 10 ", "CUTOFF = 11 ", "formats"),
    ("support/audio.py", "state = b[1] * signal[:1]", "state = 0 * signal[:1]", "formats"),
    ("support/audio.py", "if kind != (rate, block.shape[1]):", "if True:", "formats"),
    ("support/audio.py", "if kind != (rate, block.shape[1]):", "if kind is None:", "formats"),
    ("support/audio.py", "state[np.abs(state) < STILL] = 0", "pass", "formats"),
    ("support/audio.py", "channel.var(dtype=float)", "np.square(channel).mean()", "formats"),
    ("support/audio.py", "channel.var(dtype=float)", "channel.var()", "formats"),
    ("support/audio.py", "CANCELLED = 0.01", "CANCELLED = 0.9", "formats"),
    ("support/audio.py", "CANCELLED = 0.01", "CANCELLED = 1e-9", "formats"),
    ("support/audio.py", "for side in (0, 1)]", "for side in (1, 0)]", "formats preprocess"),
    (
        "support/audio.py",
        "yield resampler.resample_chunk(signal[:0], last=True)",
        "return",
        "preprocess formats",
    ),
    ("support/readers.py", '"LFE": (0, 0)', '"LFE": (1, 1)', "formats"),
    ("support/readers.py", "NOTED_S = 0.1 ", "NOTED_S = 3.0 ", "formats"),
    ("support/readers.py", "NOTED_S = 0.1 ", "NOTED_S = 0.0 ", "formats"),
    ("support/readers.py", "gains.sum(axis=0).max()", "gains.sum(axis=1).max()", "formats"),
    # Features.
    ("preprocess.py", "np.abs(stft[..., :-1, :])", "np.abs(stft[..., 1:, :])", "preprocess"),
    ("preprocess.py", "top_db=self.top_db)", "top_db=None)", "preprocess"),
    ("preprocess.py", "np.moveaxis(log_spectrogram, 0, -1)", "log_spectrogram.T", "preprocess"),
    (
        "preprocess.py",
        "np.full_like(array, self.min)",
        "np.full_like(array, self.max)",
        "preprocess",
    ),
    (
        "support/spectrograms.py",
        "log_spectrogram.max() - top_db",
        "log_spectrogram.max() + top_db",
        "train soundgenerator",
    ),
    (
        "support/spectrograms.py",
        "[(0, 1), (0, 0), (0, 0)]",
        "[(1, 0), (0, 0), (0, 0)]",
        "soundgenerator",
    ),
    ("support/spectrograms.py", " * (new / old)", "", "preprocess soundgenerator"),
    ("support/spectrograms.py", 'bc_type="natural"', 'bc_type="not-a-knot"', "preprocess"),
    (
        "support/spectrograms.py",
        "amplitude[log_spectrogram <= SILENCE_DB + 0.1] = 0",
        "pass",
        "soundgenerator",
    ),
    (
        "support/settings.py",
        "int(round(duration * sample_rate, 6))",
        "int(duration * sample_rate)",
        "preprocess",
    ),
    ("support/dataset.py", "(get_track(key), len(key), key)", "key", "preprocess"),
    (
        "support/dataset.py",
        "astype(np.float32, copy=False)",
        "astype(np.float16)",
        "train generate",
    ),
    # Interruption, and what is on disk.
    ("preprocess.py", "settings_path.exists() and not force and", "False and", "preprocess"),
    ("preprocess.py", "    if strict and skipped:", "    if False:", "preprocess"),
    ("preprocess.py", "journal.add(name, outcomes[name])", "pass", "faults"),
    ("preprocess.py", "zlib.crc32(array, zlib.crc32(header))", "zlib.crc32(header)", "faults"),
    ("preprocess.py", "Outcome.skip(str(error))\n", "Outcome.skip(str(error), stamp)\n", "faults"),
    (
        "support/journal.py",
        "2 * len(gone) >= len(recorded)",
        "2 * len(gone) > len(recorded)",
        "faults",
    ),
    ("support/journal.py", "boot_id != get_boot_id()", "False", "faults"),
    ("support/journal.py", "stamps.get(name) == outcome.stamp", "name in stamps", "faults"),
    ("support/journal.py", "or prefix + name in keys", "or True", "faults"),
    ("support/files.py", "os.fsync(file.fileno())", "pass", "faults"),
    (
        "support/files.py",
        "with filelock.FileLock(path, timeout=0):",
        "with contextlib.nullcontext():",
        "faults",
    ),
    (
        "support/files.py",
        "return has_length and path.read_bytes() == data",
        "return has_length",
        "faults",
    ),
    ("support/files.py", "(folder / marker).unlink(missing_ok=True)", "pass", "resume"),
    (
        "support/files.py",
        "key=lambda path: path.name == marker",
        "key=lambda path: path.name != marker",
        "resume",
    ),
    ("support/files.py", "not is_ours(folder, *products)", "False", "preprocess resume"),
    ("support/command_line.py", "if not math.isfinite(value):", "if False:", "command_line"),
    # Phase recovery and long sound.
    (
        "support/griffin_lim.py",
        "area / gamma, -gamma / area",
        "area / gamma, gamma / area",
        "griffin_lim",
    ),
    ("support/griffin_lim.py", "x = value.real - weight", "x = value.real + weight", "griffin_lim"),
    (
        "support/griffin_lim.py",
        "% (2 * math.pi)\n                next",
        "% math.pi\n                next",
        "griffin_lim",
    ),
    ("preprocess.py", "self.saver.dtype, *map", "*map", "preprocess"),
    ("preprocess.py", "before[..., -n_samples:]", "silence", "preprocess"),
    ("preprocess.py", "else after[..., :n_samples]", "else silence", "preprocess"),
    ("support/griffin_lim.py", "signal[: len(past)] = past", "pass", "griffin_lim"),
    ("support/griffin_lim.py", "phase[:n_known] = np", "_ = np", "griffin_lim"),
    # Sequences of any length.
    ("soundgenerator.py", "first, min(last, n_frames))", "first, last)", "soundgenerator"),
    ("soundgenerator.py", "peak = max(float", "peak = min(float", "soundgenerator"),
    (
        "soundgenerator.py",
        "encoded[begin - first : end - first]",
        "encoded[: end - begin]",
        "soundgenerator",
    ),
    (
        "soundgenerator.py",
        "log_spectrogram[:, begin:end]",
        "log_spectrogram[:, : end - begin]",
        "soundgenerator",
    ),
    ("soundgenerator.py", "-len(latents) % steps", "0", "soundgenerator"),
    (
        "soundgenerator.py",
        "columns * n_frames // width",
        "columns // step * n_frames // width",
        "soundgenerator",
    ),
    ("soundgenerator.py", "max(0, n_known - first_frame)", "n_known", "soundgenerator"),
    ("soundgenerator.py", "first_frame - new.shape[1]", "first_frame", "soundgenerator"),
    ("soundgenerator.py", "min(end % step, end - step)", "end % step", "soundgenerator"),
    ("soundgenerator.py", "min(end % step, end - step)", "0", "soundgenerator"),
    ("soundgenerator.py", "end - self.hop_length)", "end)", "soundgenerator"),
    ("soundgenerator.py", "[(first - start, stop - last)]", "[(0, 0)]", "soundgenerator"),
    ("autoencoder.py", "yield max(0, start - margin)", "yield start", "soundgenerator"),
    ("autoencoder.py", "min(stop + margin, n_steps)", "stop", "soundgenerator"),
    (
        "support/texture.py",
        "NOISE_SAMPLES\n    noise = noise[first",
        "NOISE_SAMPLES * 0\n    noise = noise[first",
        "texture",
    ),
    (
        "autoencoder.py",
        "x = image * np.sqrt(self.row_weights)",
        "x = image",
        "pca_start autoencoder",
    ),
    ("autoencoder.py", "self.row_weights * errors", "errors", "autoencoder train"),
    # The network and its start.
    (
        "autoencoder.py",
        "np.clip(predict_in_batches(self.decoder, latents), 0, 1)",
        "predict_in_batches(self.decoder, latents)",
        "autoencoder pca_start",
    ),
    ("autoencoder.py", 'self._set_precision("float32")', "pass", "autoencoder"),
    ("autoencoder.py", "training=False)", "training=True)", "autoencoder pca_start"),
    ("training/pca_start.py", "layer.trainable = False", "pass", "pca_start"),
    ("training/pca_start.py", "OFFSET_MARGIN = 1.2", "OFFSET_MARGIN = 0.5", "pca_start"),
    (
        "training/pca_start.py",
        "[gamma, mean - offset, mean, variance]",
        "[gamma, mean, mean, variance]",
        "pca_start",
    ),
    # Training.
    ("train.py", "max(1, n_steps - n_warm_up)", "10 * n_steps", "train"),
    ("train.py", "max(1, round(WARM_UP * n_steps))", "1", "train"),
    ("train.py", "epochs * len(x_train)", "len(x_train)", "train"),
    ("train.py", "        freeze_normalisations(autoencoder)", "        pass", "resume"),
    (
        "training/outputs.py",
        'json.dumps([len(parts["train"]), ranges])',
        '"the same"',
        "train resume",
    ),
    (
        "support/dataset.py",
        '[[entry["min"], entry["max"]] for entry in',
        '[[entry["max"], entry["max"]] for entry in',
        "train",
    ),
    ("training/windows.py", "default_rng((self.seed, epoch))", "default_rng(self.seed)", "windows"),
    (
        "training/windows.py",
        "self.order[places[first::count]]",
        "self.order[places[::count]]",
        "windows",
    ),
    ("training/windows.py", "rng.integers(least, most + 1)", "0", "windows train"),
    ("training/windows.py", "* (own_peak - peak)", "* 0 * own_peak", "windows train"),
    ("training/windows.py", "np.clip(frames, first[:, None]", "np.clip(frames, 0", "windows train"),
    ("training/outputs.py", "[start - before : stop - before]", "[: stop - start]", "train"),
    (
        "training/callbacks.py",
        'epoch + 1 == self.params["epochs"]',
        'epoch == self.params["epochs"]',
        "train resume",
    ),
    ("training/callbacks.py", "self.model.set_weights(self.weights)", "pass", "train"),
    ("training/callbacks.py", "math.isfinite(logs.get(name, 0))", "True", "train"),
    ("training/checkpoint.py", '["val_loss" if is_held_out else "loss"]', '["loss"]', "train"),
    ("training/checkpoint.py", "max(find_best_row(rows), peak)", "find_best_row(rows)", "train"),
    ("training/checkpoint.py", "if force or not (is_whole", "if not (is_whole", "train resume"),
    ("training/checkpoint.py", "sorted(arrays, key=get_index)", "sorted(arrays)", "resume"),
    ("training/checkpoint.py", "and name not in EXTENDABLE", 'and name != "seed"', "resume"),
    (
        "training/splits.py",
        "math.ceil(validation_split * len(recordings))",
        "int(validation_split * len(recordings))",
        "train twins",
    ),
    ("training/splits.py", "len(recordings) - 1)", "len(recordings))", "train"),
    ("training/twins.py", "MIN_SIMILARITY = 0.75", "MIN_SIMILARITY = 0.97", "twins"),
    ("training/twins.py", "MIN_SIMILARITY = 0.75", "MIN_SIMILARITY = 0.3", "twins"),
    ("training/twins.py", "N_PIECES = 2 ", "N_PIECES = 1 ", "twins"),
    ("training/devices.py", "copy.trainable = layer.trainable", "pass", "distribution"),
    # New music.
    ("generate.py", "replace=False", "replace=True", "generate"),
    ("generate.py", "HEADROOM = 0.99", "HEADROOM = 1.5", "generate"),
    (
        "generate.py",
        'sources.spectrograms_path / "settings.json") != settings',
        'sources.spectrograms_path / "settings.json") is None',
        "new_music generate",
    ),
    ("generation/modes.py", "dataset.get_segment(key)\n", "0\n", "generate"),
    (
        "generation/modes.py",
        "(1 - share) * first + share * last",
        "(1 - share) * last + share * first",
        "new_music",
    ),
    (
        "generation/modes.py",
        '(1 - share) * ranges[0]["max"] + share * ranges[1]["max"]',
        'share * ranges[0]["max"] + (1 - share) * ranges[1]["max"]',
        "new_music",
    ),
    ("generation/modes.py", "len(TOUR)), TOUR)", "len(TOUR)), np.square(TOUR))", "new_music"),
    (
        "generation/modes.py",
        "default_rng((seed, 1, index))",
        "default_rng((seed, 1, count))",
        "new_music",
    ),
    (
        "generation/modes.py",
        "count_steps(n_samples), temperature, rng)",
        "count_steps(n_samples), 1.0, rng)",
        "new_music",
    ),
    (
        "generation/modes.py",
        "range(seed, seed + (num",
        "range(seed + 1, seed + 1 + (num",
        "new_music",
    ),
    ("support/prior.py", "self.step @ deviation +", "deviation +", "new_music"),
    ("support/prior.py", "temperature * self.noise_factor", "self.noise_factor", "new_music"),
    ("support/prior.py", "temperature * self.start_factor", "self.start_factor", "new_music"),
    ("support/prior.py", "+ self.spreads[group] * deviations", "+ deviations", "new_music"),
    ("support/prior.py", "(past - self.centres[group])", "0 * past", "new_music"),
    ("support/prior.py", "axis=1).argmin()", "axis=1).argmax()", "new_music"),
    ("support/prior.py", "white[earlier + 1].T", "white[earlier].T", "new_music"),
    (
        "support/prior.py",
        "latents - centres[groups]",
        "latents - centres.mean(axis=0)",
        "new_music",
    ),
    (
        "support/prior.py",
        "tracks.genres if is_short else",
        "tracks.tracks if True else",
        "new_music",
    ),
    ("support/prior.py", " / np.sqrt(len(self.centres))", "", "new_music"),
    ("support/prior.py", '"i" and array.min() < 1', '"i" and False', "new_music hostile"),
    ("support/prior.py", "has_shape &= all(", "all(", "new_music hostile"),
    ("support/prior.py", ", MIN_VARIANCE)", ", 0)", "new_music"),
    (
        "support/bands.py",
        "np.diff([*starts, width])[:, np.newaxis]",
        "FRAMES_PER_STEP",
        "evaluation",
    ),
    ("generation/evaluation.py", "steps[best] - start)", "steps[best])", "evaluation"),
    ("generation/evaluation.py", "max(1, length // 2)", "length", "evaluation"),
    ("generation/page.py", "extent=(0, n_samples /", "extent=(0, 1 + n_samples /", "page"),
    ("generation/modes.py", "SAME_IMAGE = 1e-3", "SAME_IMAGE = 1.0", "generate"),
    (
        "generation/modes.py",
        "read_prior(model).take_genre(genre)",
        "read_prior(model)",
        "new_music",
    ),
    (
        "soundgenerator.py",
        "end - griffin_lim.n_past, end)",
        "0, griffin_lim.n_past)",
        "soundgenerator",
    ),
    ("generation/evaluation.py", "energy[: -self._length]", "0", "evaluation"),
    ("generation/evaluation.py", "axis=1).conj()", "axis=1)", "evaluation"),
    ("generation/evaluation.py", "- np.diag(kernel)", "- 0", "evaluation"),
    ("generation/evaluation.py", "np.diff(np.diff(", "((np.diff(", "evaluation"),
    (
        "generation/evaluation.py",
        "reference_mel.max() - MEL_TOP_DB",
        "reference_mel.max() + MEL_TOP_DB",
        "new_music",
    ),
    ("generation/evaluation.py", "- 2 * between", "- between", "evaluation"),
    ("generate.py", "genre in (None, dataset.get_genre(key))", "True", "new_music"),
    ("generation/page.py", "self.earlier.pop(item.name, None)", "pass", "page"),
    (
        "generation/page.py",
        "self.summary = summary or self.summary",
        "self.summary = summary",
        "page",
    ),
    ("generation/page.py", "autoescape=True", "autoescape=False", "page new_music"),
]


def main():
    chosen = [row for row in MUTATIONS if row[0].startswith(tuple(sys.argv[1:]) or "")]
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        names = sorted({name for *_, tests in chosen for name in tests.split()})
        broken = find_failures(Path(folder), names, "not slow")
        for test in broken:
            print(f"fails without a change, and is left out: {test}", flush=True)
        verdicts = [mutate(Path(folder), *mutation, broken) for mutation in chosen]
    n_killed = sum(verdict.startswith("killed") for verdict in verdicts)
    print(f"{n_killed} of {len(chosen)} changes were noticed")
    sys.exit(bool(broken) or n_killed < len(chosen))


def copy_tree(folder):
    """Copy what git tracks or would, as it lies here."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def mutate(folder, file, old, new, tests, broken):
    """Change one place, run the tests but the broken ones, and change it back; the verdict."""
    path = folder / file
    text = path.read_text()
    verdict = "text not found"
    if text.count(old) == 1:
        path.write_text(text.replace(old, new))
        options = ["-x", *(f"--deselect=tests/{test}" for test in broken)]
        failures = find_failures(folder, tests.split(), "not slow", *options)
        failures = failures or find_failures(folder, tests.split(), "slow", *options)
        verdict = f"killed by {failures[0]}" if failures else "SURVIVED"
        path.write_text(text)
    print(f"{file}: {old.strip()!r} -> {new.strip()!r}: {verdict}", flush=True)
    return verdict


def find_failures(folder, names, marker, *options):
    """The tests that fail, of some test files and with a marker."""
    paths = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-m", marker, *options, *paths]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        run = subprocess.run(command, cwd=folder, text=True, timeout=TIMEOUT_S, **output)
    except subprocess.TimeoutExpired:
        return ["a test that hangs"]
    if run.returncode in (0, NO_TESTS):
        return []
    failures = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", run.stdout, re.MULTILINE)
    return failures or [run.stdout[-1000:]]


if __name__ == "__main__":
    main()
