"""The settings that features depend on.

In:  flags, or the settings.json beside the features or the model.
Out: checked Settings.

    settings = Settings.load("saved_data/spectrograms/settings.json")
"""

import dataclasses
import math

from support.errors import UserError
from support.files import read_json, reading, write_json

FORMAT_VERSION = 2  # of the folder of features
LIMITS = {  # type, lowest and highest value
    "frame_size": (int, 4, 1 << 16),
    "hop_length": (int, 1, 1 << 15),
    "duration": (float, 0.01, 3600),
    "sample_rate": (int, 100, 768_000),
    "top_db": (float, 1, 1000),
}
MAX_PIECE_BYTES = 1 << 31  # of one spectrogram


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a feature depends on besides its audio file.

    Args:
        sample_rate: Hz.
        frame_size: samples, even.
        hop_length: samples, at most half of frame_size.
        duration: seconds of a piece.
        mono: mix all channels down to one; else two.
        top_db: dB kept below a piece's own peak.
    Raises:
        UserError: a value is out of its range.
    """

    sample_rate: int
    frame_size: int
    hop_length: int
    duration: float
    mono: bool
    top_db: float
    format_version: int = FORMAT_VERSION

    def __post_init__(self):
        for name, (_, least, most) in LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"{name} must be in {least}..{most}, got {value!r}")
        if self.format_version != FORMAT_VERSION:
            raise UserError(f"format_version must be {FORMAT_VERSION}, got {self.format_version!r}")
        if self.frame_size % 2:
            raise UserError(f"frame_size must be even, got {self.frame_size}")
        most = self.frame_size // 2  # else phase recovery has too little overlap
        if self.hop_length > most:
            raise UserError(
                f"hop_length must be in 1..{most} (half of frame_size), got {self.hop_length}"
            )
        if self.n_samples < self.frame_size:
            least = math.ceil(1000 * self.frame_size / self.sample_rate) / 1000
            raise UserError(
                f"duration must be at least {least} s (one frame of {self.frame_size} samples), "
                f"got {self.duration}"
            )
        n_frames = 1 + self.n_samples // self.hop_length
        n_bytes = 4 * (self.frame_size // 2) * n_frames * (1 if self.mono else 2)
        if n_bytes > MAX_PIECE_BYTES:
            raise UserError(
                "duration must be shorter, or hop_length longer: a spectrogram of "
                f"{n_bytes / 1e9:.1f} GB is above the limit of {MAX_PIECE_BYTES / 1e9:.1f} GB"
            )

    @property
    def n_samples(self):
        """Samples of a piece."""
        return count_samples(self.sample_rate, self.duration)

    def save(self, path):
        """Write settings.json."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path, remedy=None):
        """The Settings in a settings.json.

        Args:
            remedy: if they are missing or damaged; None: that of features.
        Raises:
            FileNotFoundError: it does not exist.
            UserError: it is damaged, or of another version.
        """
        if_missing = remedy or "run preprocess.py first, or name its folder with --saved_data"
        with reading(path, remedy or "run preprocess.py --force", if_missing):
            values = read_json(path)
            values.pop("segments", None)  # of earlier versions, whose models go on
            return cls(**values)


def count_samples(sample_rate, duration):
    """Samples of a piece."""
    return int(round(duration * sample_rate, 6))
