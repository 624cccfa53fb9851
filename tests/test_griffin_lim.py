import librosa
import numpy as np
import pytest
import scipy.signal

import support.griffin_lim as griffin_lim_module
from generation.evaluation import measure_spectral_convergence
from helpers import SAMPLE_RATE, make_music, make_tone
from support.griffin_lim import GriffinLim, integrate_phase


def analyse(signal, frame_size=1024, hop_length=256):
    """float32 (n_channels, frame_size / 2 + 1, n_frames)."""
    return np.abs(librosa.stft(np.atleast_2d(signal), n_fft=frame_size, hop_length=hop_length))


def recover(signal, frame_size=1024, hop_length=256, **keywords):
    griffin_lim = GriffinLim(frame_size, hop_length, **keywords)
    return griffin_lim.invert(analyse(signal, frame_size, hop_length), signal.shape[-1])


NOTHING = [np.empty(0, np.float32)] * 2  # is known of what comes before and after


def make_chirp(duration=2.0, start=500.0, rate=1000.0):
    """A sine whose frequency climbs by `rate` Hz per second."""
    time = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * (start + rate * time / 2) * time)).astype(np.float32)


def make_impulses(period=2205, n_samples=22050):
    signal = np.zeros(n_samples, np.float32)
    signal[period // 2 :: period] = 0.9
    return signal


@pytest.mark.parametrize(
    "frame_size, hop_length, momentum", [(1024, 300, 0.99), (512, 256, 0.99), (1024, 256, 0.0)]
)
def test_iterations_equal_librosas(monkeypatch, frame_size, hop_length, momentum):
    # librosa sets what lies outside the signal to zero in each iteration: silence is there anyway.
    music = np.pad(make_music(1.0), 3 * frame_size)
    amplitude = analyse(music, frame_size, hop_length)
    phase = 2 * np.pi * np.random.RandomState(7).random(amplitude[0].shape)  # librosa's
    griffin_lim = GriffinLim(frame_size, hop_length, n_iter=5, momentum=momentum)
    monkeypatch.setattr(griffin_lim, "_make_phase", lambda *_: phase.T.astype(np.float32))

    ours = griffin_lim.invert(amplitude, len(music))

    oracle = librosa.griffinlim(
        amplitude[0],
        n_iter=5,
        n_fft=frame_size,
        hop_length=hop_length,
        length=len(music),
        momentum=momentum,
        random_state=7,
    )
    np.testing.assert_allclose(ours, oracle, atol=1e-3)  # float32, and each iteration adds to it


@pytest.mark.parametrize("make", [make_tone, make_chirp, make_impulses, make_music])
def test_integrated_phase_climbs_as_the_true_one(make):
    spectrum = librosa.stft(make(), n_fft=1024, hop_length=256)
    griffin_lim = GriffinLim(1024, 256)

    phase = griffin_lim._make_phase(np.ascontiguousarray(np.abs(spectrum).T), NOTHING, 0).T

    # Over frames and over bins, between neighbours that are both within 20 dB of the peak.
    loud = np.abs(spectrum) > 0.1 * np.abs(spectrum).max()
    for axis in (0, 1):
        both = loud[1:] & loud[:-1] if axis == 0 else loud[:, 1:] & loud[:, :-1]
        difference = np.diff(phase - np.angle(spectrum), axis=axis)[both]
        error = np.abs((difference + np.pi) % (2 * np.pi) - np.pi)
        assert np.median(error) < 0.15, axis  # rad; a Hann window is no Gaussian


@pytest.mark.parametrize("frame_size, hop_length", [(1024, 256), (512, 256), (1024, 300), (256, 7)])
def test_music_comes_closer_than_through_librosas_default(frame_size, hop_length):
    music = make_music(1.0)
    amplitude = analyse(music, frame_size, hop_length)

    ours = recover(music, frame_size, hop_length)

    oracle = librosa.griffinlim(
        amplitude[0], n_fft=frame_size, hop_length=hop_length, length=len(music), random_state=0
    )
    ours, oracle = (
        measure_spectral_convergence(amplitude, signal, frame_size, hop_length)
        for signal in (ours, oracle)
    )
    assert ours < oracle - 1


def test_chirp_keeps_its_sweep_rate():
    again = recover(make_chirp())

    spectrum = np.abs(librosa.stft(again, n_fft=1024, hop_length=256))[:, 8:-8]
    frequencies = spectrum.argmax(axis=0) * SAMPLE_RATE / 1024
    rate, _ = np.polyfit(np.arange(len(frequencies)) * 256 / SAMPLE_RATE, frequencies, 1)
    assert abs(rate - 1000) < 10


def test_noise_keeps_its_level_and_impulses_their_onsets_too():
    noise = make_noises()[0]
    assert abs(20 * np.log10(recover(noise).std() / noise.std())) < 1
    impulses = make_impulses()

    again = recover(impulses)

    for onset in np.flatnonzero(impulses)[1:-1]:
        near = again[onset - 600 : onset + 600]
        assert abs(np.abs(near).argmax() - 600) <= 256
    assert abs(20 * np.log10(again.std() / impulses.std())) < 1


def test_a_batch_gives_the_signals_of_its_pieces_and_so_do_more_threads():
    pieces = [make_music(0.5, seed) for seed in range(5)]
    griffin_lim = GriffinLim(512, 128, n_iter=3)
    amplitudes = [analyse(piece, 512, 128) for piece in pieces]

    batch = [*griffin_lim.invert_all(amplitudes, 11025)]

    for amplitude, signal in zip(amplitudes, batch, strict=True):
        for n_threads in (1, 3):
            alone = griffin_lim.invert(amplitude, 11025, n_threads=n_threads)
            np.testing.assert_allclose(signal, alone, atol=1e-6)


def test_the_seed_decides_the_phases_that_no_slope_tells():
    noise = make_music(0.5)

    first, again, other = (recover(noise, init="random", seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_silence_stays_silent_beside_a_channel_with_sound():
    stereo = np.stack([np.zeros(11025, np.float32), make_tone(440, 0.5)])

    again = recover(stereo)

    assert again.shape == stereo.shape
    assert not again[0].any() and again[1].any()


def make_noises(n_samples=44100):
    """Two independent noises, as a room or a chorus puts them left and right."""
    rng = np.random.default_rng(0)
    return 0.1 * rng.standard_normal((2, n_samples)).astype(np.float32)


def measure_side(stereo):
    """dB: the power of the difference of both channels over that of their sum."""
    return 10 * np.log10(np.square(stereo[0] - stereo[1]).sum() / np.square(stereo.sum(0)).sum())


def test_wide_noise_stays_wide():
    stereo = make_noises()

    again = recover(stereo)

    assert abs(np.corrcoef(again)[0, 1]) < 0.2  # 0.29 without scatter
    assert abs(measure_side(again) - measure_side(stereo)) < 1.5  # dB; 2.6 without


def test_alike_channels_stay_alike_and_one_channel_alone_is_not_scattered(monkeypatch):
    music = make_music(1.0)

    mono, (left, right) = recover(music), recover(np.stack([music, music]))

    np.testing.assert_allclose(left, right, atol=1e-4)
    monkeypatch.setattr(griffin_lim_module, "scatter", None)
    np.testing.assert_array_equal(recover(music), mono)


@pytest.mark.parametrize("gains", [(1.0, 1.0), (1.0, 0.3), (0.05, 1.0)])
def test_what_is_panned_stays_in_its_place(gains):
    stereo = np.float32(gains)[:, np.newaxis] * (make_music(2.0) + make_noises()[0])

    again = recover(stereo)

    assert np.corrcoef(again)[0, 1] > 0.99
    level = 20 * np.log10(again.std(axis=1) / stereo.std(axis=1))
    assert np.abs(level).max() < 1


def test_a_centred_sound_keeps_its_focus_over_wide_noise_in_other_bins():
    tone = make_tone(440, 2.0)
    stereo = tone + scipy.signal.sosfilt(
        scipy.signal.butter(4, 3000, "high", fs=SAMPLE_RATE, output="sos"), make_noises()
    )

    again = recover(stereo.astype(np.float32))

    low = scipy.signal.butter(4, 1000, fs=SAMPLE_RATE, output="sos")
    high = scipy.signal.butter(4, 3500, "high", fs=SAMPLE_RATE, output="sos")
    assert np.corrcoef(scipy.signal.sosfilt(low, again))[0, 1] > 0.99
    assert np.corrcoef(scipy.signal.sosfilt(high, again))[0, 1] < 0.2


def test_phases_are_integrated_from_the_loudest_point_outward():
    # One loud column beside a soft one with a gap on the floor between: two separate starts.
    log_magnitude = np.full((5, 6), -9.0, np.float32)
    log_magnitude[:2] = -1.0
    log_magnitude[3:] = -3.0
    phase = np.full_like(log_magnitude, 7.0)

    integrate_phase(log_magnitude, phase, np.zeros(5, bool), 0.25, 0.0, 0.0)

    assert (phase[2] == 7).all() and (phase[[0, 1, 3, 4]] < 2 * np.pi).all()
    np.testing.assert_allclose(
        np.diff(phase[:2], axis=0)[0] % (2 * np.pi),
        2 * np.pi * 0.25 * np.arange(6) % (2 * np.pi),
        atol=1e-5,
    )


def test_known_phases_spread_before_the_loudest_point_starts_its_own():
    log_magnitude = np.full((4, 6), -3.0, np.float32)
    log_magnitude[2:] = -1.0
    log_magnitude[:, 5] = -9.0  # a floor
    phase = np.tile(1 - np.pi * np.arange(6, dtype=np.float32), (4, 1))  # as bins follow bins

    known = phase[0].copy()
    integrate_phase(log_magnitude, phase, np.arange(4) == 0, 0.0, 0.0, 0.0)

    turns = (phase[:, :5] - known[:5]) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.rint(turns), atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_gap_is_filled_in_the_phase_of_what_is_on_both_sides(n_channels):
    music = np.stack([make_tone(duration=2.0), 0.5 * make_tone(duration=2.0)])[:n_channels]
    griffin_lim, begin, end = GriffinLim(1024, 256), 12288, 28672
    start, stop = begin - griffin_lim.n_past, end + griffin_lim.n_past
    frames = slice(start // 256 + 2, stop // 256 - 1)  # whole ones

    known = {"past": music[:, start:begin], "future": music[:, end:stop]}
    filled = griffin_lim.invert(analyse(music)[..., frames], end - begin, **known)

    filled, gap = np.atleast_2d(filled), music[:, begin:end]
    for place in (slice(0, 1024), slice(-1024, None)):  # beside the recording
        error = np.linalg.norm(filled[:, place] - gap[:, place]) / np.linalg.norm(gap[:, place])
        assert error < 0.1, place


@pytest.mark.parametrize("frame_size, hop_length, n_channels", [(1024, 256, 2), (512, 256, 1)])
def test_a_long_signal_has_no_seams(monkeypatch, frame_size, hop_length, n_channels):
    monkeypatch.setattr(griffin_lim_module, "STRETCH_FRAMES", 100)
    music = np.stack([make_music(6.0), np.roll(make_music(6.0), 500)])[:n_channels]
    amplitude = analyse(music, frame_size, hop_length)
    parts = [amplitude[..., start : start + 30] for start in range(0, amplitude.shape[2], 30)]

    signal = GriffinLim(frame_size, hop_length).invert_long(parts, music.shape[1])

    signal = np.atleast_2d(signal)
    whole = np.atleast_2d(GriffinLim(frame_size, hop_length).invert(amplitude, music.shape[1]))
    assert signal.shape == music.shape
    squares = np.square(analyse(signal, frame_size, hop_length) - amplitude).sum(axis=(0, 1))
    at_seams = [squares[k - 3 : k + 4].mean() for k in range(100, amplitude.shape[2], 100)]
    others = np.square(analyse(whole, frame_size, hop_length) - amplitude).sum(axis=(0, 1))
    assert np.mean(at_seams) < 2 * others.mean()


@pytest.mark.parametrize("n_frames", [30, 100])  # of a part: those of a stretch, too
def test_each_stretch_of_a_long_signal_looks_ahead(monkeypatch, n_frames):
    seen, invert = [], GriffinLim.invert
    monkeypatch.setattr(griffin_lim_module, "STRETCH_FRAMES", 100)
    monkeypatch.setattr(
        GriffinLim,
        "invert",
        lambda self, a, *n, **how: seen.append(a) or invert(self, a, *n, **how),
    )
    amplitude = np.ones((1, 129, 500), np.float32)
    parts = [amplitude[..., start : start + n_frames] for start in range(0, 500, n_frames)]

    GriffinLim(256, 64, n_iter=0).invert_long(parts, 64 * 499)

    assert [part.shape[-1] for part in seen[:4]] == [108, 116, 116, 116]


def test_the_ends_of_a_piece_of_a_longer_sound_are_as_good_as_its_middle():
    music = make_music(2.0)
    stft = librosa.stft(music[4096 - 512 : -4096 + 512], n_fft=1024, hop_length=256, center=False)
    amplitude = np.abs(stft)[np.newaxis]
    piece = music[4096:-4096]

    ends = []
    for is_extended in (False, True):
        signal = GriffinLim(1024, 256).invert(amplitude, len(piece), is_extended=is_extended)
        error = np.square(analyse(signal, 1024, 256) - analyse(piece, 1024, 256)).sum(axis=(0, 1))
        ends.append(error[:4].sum())

    assert ends[1] < 0.7 * ends[0]
