"""Fetch GTZAN, or take it from a folder, and check that it is whole.

In:  Kaggle (needs `pip install -r requirements-extra.txt`), or a folder that holds the ten genres.
Out: data/gtzan/genres_original/<genre>/<genre>.<number>.wav; which tracks are missing or damaged.

    python data/gtzan/prepare.py
    python data/gtzan/prepare.py --source ~/Downloads/archive --tracks_per_genre 10

The split beside this file, split.json, is the fault-filtered one of Kereliuk, Sturm and Larsen
(2015, arXiv:1507.04761): without the replicas that Sturm counted in 2012, and with no artist in
two of its parts.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import preprocess
from support.command_line import make_parser, number, run_script
from support.errors import UserError
from support.files import write_atomically

FOLDER = Path(__file__).resolve().parent / "genres_original"
HANDLE = "andradaolteanu/gtzan-dataset-music-genre-classification"  # on Kaggle
GENRES = (
    "blues",
    "classical",
    "country",
    "disco",
    "hiphop",
    "jazz",
    "metal",
    "pop",
    "reggae",
    "rock",
)
N_TRACKS = 100  # of each genre
ENDINGS = (".wav", ".au")  # of Kaggle's files, and of those that Tzanetakis published
KNOWN_DAMAGED = "jazz/jazz.00054"  # in every copy on Kaggle
SEARCH_DEPTH = 3  # folders below the source
NAMED = 10  # tracks in a message


def list_tracks(n_tracks=N_TRACKS):
    """The 1000 tracks, or the first ones of each genre, without their ending."""
    return [f"{genre}/{genre}.{number:05d}" for genre in GENRES for number in range(n_tracks)]


def find_tracks(folder):
    """{track: its file} of the tracks that are in a folder of genres."""
    paths = ((track, Path(folder, track + ending)) for track in list_tracks() for ending in ENDINGS)
    return {track: path for track, path in paths if path.is_file()}


def find_genres(source):
    """The folder of genres with the most tracks, the source or one below it.

    Raises:
        FileNotFoundError: none has any.
    """
    depth = len(Path(source).parts) + SEARCH_DEPTH
    candidates = []
    for folder, subfolders, _ in os.walk(source):
        if {*subfolders} & {*GENRES}:
            candidates.append(folder)
        subfolders[:] = sorted(subfolders) if len(Path(folder).parts) < depth else []
    best = max(candidates, key=lambda folder: len(find_tracks(folder)), default=None)
    if best is None or not find_tracks(best):
        raise FileNotFoundError(
            f"{source} holds no folder of genres, as in blues/blues.00000.wav: see --source"
        )
    return best


def download():
    """The folder that Kaggle's copy was downloaded to.

    Raises:
        UserError: kagglehub is not installed, or the download fails.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(
            "the download needs kagglehub: pip install -r requirements-extra.txt, or name a "
            "folder that holds the files with --source"
        ) from error
    try:
        return kagglehub.dataset_download(HANDLE)
    except Exception as error:  # of many libraries below it
        raise UserError(
            f"the download failed ({error}): try again, or fetch {HANDLE} from Kaggle by hand and "
            "name its folder with --source"
        ) from error


def take_tracks(source, folder, n_tracks=N_TRACKS):
    """Put the source's tracks into a folder, as links or copies; what is there stays.

    Args:
        n_tracks: how many of each genre, the first ones.
    Returns:
        how many were put there.
    """
    existing, available = find_tracks(folder), find_tracks(source)
    n_taken = 0
    for track in [track for track in list_tracks(n_tracks) if track in available]:
        path = available[track]
        target = Path(folder, track + path.suffix)
        if track in existing or os.path.lexists(target):
            continue
        n_taken += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:  # another disk
            write_atomically(target, path.read_bytes())
    return n_taken


def check_tracks(folder, n_tracks):
    """(missing tracks, {damaged track: reason}), if there are to be n_tracks of each genre."""
    existing = find_tracks(folder)
    loader = preprocess.Loader(preprocess.SAMPLE_RATE, preprocess.DURATION, True)
    damaged = {}
    for track, path in existing.items():
        remarks = []
        try:
            loader.load_whole(path, remarks)
        except UserError as error:
            remarks.append(str(error))
        if remarks:
            damaged[track] = "; ".join(remarks)
    return [track for track in list_tracks(n_tracks) if track not in existing], damaged


def prepare(source, folder, n_tracks=N_TRACKS):
    """Fill a folder with the tracks of a source, and check it.

    Args:
        source: a folder, or None to download them.
        n_tracks: how many of each genre, the first ones.
    Raises:
        UserError: a track is missing or damaged, other than the one that always is.
    """
    wanted, existing = {*list_tracks(n_tracks)}, find_tracks(folder)
    if source is not None or wanted - existing.keys():
        genres = find_genres(source or download())
        print(f"{take_tracks(genres, folder, n_tracks)} tracks taken from {genres}")
    missing, damaged = check_tracks(folder, n_tracks)
    n_whole = len(find_tracks(folder)) - len(damaged)
    print(f"{n_whole} of {len(wanted | existing.keys())} tracks are whole in {folder}")
    for track, reason in damaged.items():
        known = ", as in every copy on Kaggle; preprocess.py leaves it out"
        print(f"damaged: {track} {reason}{known if track == KNOWN_DAMAGED else ''}")
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"{len(missing)} tracks are missing: {', '.join(missing[:NAMED])}{more}; "
            "name another --source"
        )
    if damaged.keys() - {KNOWN_DAMAGED}:
        raise UserError(
            f"{len(damaged)} tracks are damaged: delete these from {folder}, and start again"
        )


def get_parser():
    parser = make_parser(__doc__)
    help_text = "folder that holds the genres; None: download them"
    parser.add_argument("--source", type=Path, help=help_text)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to fill")
    help_text = "take only the first ones; the others can follow later"
    count = {"type": number(int, 1, N_TRACKS), "default": N_TRACKS, "metavar": "N"}
    parser.add_argument("--tracks_per_genre", help=help_text, **count)
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    prepare(options.source, options.folder, options.tracks_per_genre)


if __name__ == "__main__":
    run_script(main)
