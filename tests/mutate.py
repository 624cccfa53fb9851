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
    ("support/audio.py", "block = block - offset", "pass", "formats"),
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
    (
        "soundgenerator.py",
        "fade = 1 - np.abs(np.linspace",
        "fade = 1 - 0 * np.abs(np.linspace",
        "soundgenerator",
    ),
    ("soundgenerator.py", "np.interp(samples, centres, gains)", "gains[0]", "soundgenerator"),
    ("preprocess.py", "self.saver.dtype, *map", "*map", "preprocess"),
    ("soundgenerator.py", "-self.n_seen % self._step", "0", "soundgenerator"),
    ("soundgenerator.py", "n_left - n_done", "n_left", "soundgenerator"),
    ("preprocess.py", "before[..., -n_samples:]", "silence", "preprocess"),
    ("preprocess.py", "else after[..., :n_samples]", "else silence", "preprocess"),
    ("support/griffin_lim.py", "signal[: len(past)] = past", "pass", "griffin_lim"),
    ("support/griffin_lim.py", "phase[:n_known] = np", "_ = np", "griffin_lim"),
    (
        "support/texture.py",
        "NOISE_SAMPLES\n    noise = noise[first",
        "NOISE_SAMPLES * 0\n    noise = noise[first",
        "texture",
    ),
    ("training/pca_start.py", "share = min(1.0,", "share = 0 * min(1.0,", "pca_start"),
    ("training/pca_start.py", "share = min(1.0,", "share = 1 + 0 * min(1.0,", "pca_start"),
    (
        "autoencoder.py",
        "x = image * np.sqrt(self.row_weights)",
        "x = image",
        "pca_start autoencoder",
    ),
    ("autoencoder.py", "self.row_weights * errors", "errors", "autoencoder train"),
    ("soundgenerator.py", "1 + max(0, -(-(", "1 + max(0, ((", "soundgenerator"),
    # The network and its start.
    ("autoencoder.py", "np.clip(images, 0, 1)", "images", "autoencoder pca_start"),
    (
        "autoencoder.py",
        "crop.append((before, full - size - before))",
        "crop.append((0, full - size))",
        "pca_start",
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
    ("train.py", "epochs * len(batches)", "epochs * len(x_train)", "train"),
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
    ("training/batches.py", "default_rng((self.seed, epoch))", "default_rng(self.seed)", "batches"),
    (
        "training/batches.py",
        "self.order[places[first::count]]",
        "self.order[places[::count]]",
        "batches",
    ),
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
    ("training/data.py", "top_db=self.top_db)", "top_db=None)", "train"),
    (
        "training/data.py",
        "frames += rng.integers(-EDGE_FRAMES, EDGE_FRAMES + 1)",
        "frames += 0",
        "train",
    ),
    ("training/data.py", "self.has_next = [a == b", "self.has_next = [True", "train"),
    ("training/data.py", "frames[start:stop] - first", "frames[start:stop] - first - 1", "train"),
    ("training/data.py", "self.nbytes > MEMORY_SHARE", "self.nbytes < MEMORY_SHARE", "train"),
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
        "(1 - share) * ends[0] + share * ends[1]",
        "(1 - share) * ends[1] + share * ends[0]",
        "new_music",
    ),
    ("generation/modes.py", "np.outer(TOUR,", "np.outer(np.square(TOUR),", "new_music"),
    (
        "generation/modes.py",
        "prior.sample(count, temperature, rng)\n",
        "prior.sample(count, temperature, rng)\n    ranges = ranges[::-1]\n",
        "new_music",
    ),
    (
        "generation/modes.py",
        "prior.walk(n_windows, temperature,",
        "prior.walk(n_windows, 1.0,",
        "new_music",
    ),
    ("generation/modes.py", "SAME_IMAGE = 1e-3", "SAME_IMAGE = 1.0", "generate"),
    (
        "generation/modes.py",
        "read_prior(model).take_genre(genre)",
        "read_prior(model)",
        "new_music",
    ),
    ("generation/prior.py", "self.step @ deviation +", "deviation +", "new_music"),
    ("generation/prior.py", "temperature * self.noise_factor", "self.noise_factor", "new_music"),
    ("generation/prior.py", "temperature * self.start_factor", "self.start_factor", "new_music"),
    ("generation/prior.py", "= np.sqrt(spreads / typical)", "= 1 + 0 * spreads", "new_music"),
    (
        "soundgenerator.py",
        "end - griffin_lim.n_past, end)",
        "0, griffin_lim.n_past)",
        "soundgenerator",
    ),
    ("generation/prior.py", "temperature * self.spreads", "self.spreads", "new_music"),
    (
        "generation/prior.py",
        "* self.peak_scale + self.peak_median",
        "* self.peak_scale",
        "new_music",
    ),
    ("generation/prior.py", "[between, earlier + 1]", "[between, earlier]", "new_music"),
    (
        "generation/prior.py",
        "= points - centres[groups]",
        "= points - centres.mean(axis=0)",
        "new_music",
    ),
    ("training/data.py", "width // 2 + np.arange(width)", "np.arange(width)", "train"),
    (
        "training/outputs.py",
        "followers.latents[batch] = encode",
        "followers.latents[batch] = 0 * encode",
        "train",
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
