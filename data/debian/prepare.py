"""Fetch twelve hours of free music, of eight styles, out of packages of Debian or Ubuntu.

In:  the package archive of this machine, by apt-get download; nothing is installed.
Out: data/debian/music/<style>/<package>__<track>; data/debian/licences/<package>.txt.

    python data/debian/prepare.py
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from support.command_line import make_parser, run_script
from support.errors import UserError

FOLDER = Path(__file__).resolve().parent
MUSIC = re.compile(r".*/(([Mm]usics?(\.ocg)?|songs|themes)/.+|sound/intro)\.(ogg|opus|mp3)")
NOT_MUSIC = re.compile(  # parts of tracks, wind, and tracks whose licence is not clear
    r".*/(sequencer/.+|guitar|wind_ambient|Bleostrada|TheBeginning)\.ogg"
)
MIN_S = 30  # of a track: below are fanfares

SOURCES = {  # {style: {package: the licence and the authors of its music}}
    "ambient": {
        "singularity-music": "CC BY-SA 3.0, Max McCracken",
        "warzone2100-music": "GPL 2 or later, Eidos Interactive, Warzone 2100 Project",
    },
    "easy-listening": {
        "lincity-ng-data": "GPL 2 or later, Pronobozo, Robert van Herk",
        "openclonk-data": "CC BY 3.0, Martin Strohmeier (K-Pone)",
        "pink-pony-data": "CC BY-SA 3.0, Renich",
        "xmoto-data": "GPL 2 or later, Jens Erler, Cubulo, X-Moto Development Team",
    },
    "electronic": {
        "colobot-common-sounds": "GPL 3 or later, Daniel Roux, Epsitec SA, TerranovaTeam (Emxx52)",
        "mu-cade-data": "BSD of two clauses, Kenta Cho",
        "torus-trooper-data": "BSD of two clauses, Kenta Cho",
    },
    "folk-medieval": {
        "freecol": "CC BY 4.0, Alexander Zhelanov, Stian Grenborgen; "
        "intro: GPL 2 or later, Ivica Ico Bukvic",
        "megaglest-data": "CC BY-SA 3.0, Glest Team, MegaGlest Team, Aminos, Margaras and others",
        "unknown-horizons": "CC BY-SA 3.0, Unknown Horizons Team",
    },
    "game-pop": {
        "extremetuxracer-data": "GPL 2 or later, Extreme Tux Racer Team",
        "plee-the-bear-data": "CC BY-SA 3.0, the data authors of Plee the Bear",
        "pushover-data": "GPL 3 or later, Roberto Lorenz",
        "warmux-data": "GPL 2 or later, Olivier Militon, WarMUX contributors",
    },
    "metal": {
        "fretsonfire-songs-muldjord": "CC BY-SA 3.0, El Senator of Muldjord",
        "fretsonfire-songs-sectoid": "MIT, Carlos Viola Iborra",
    },
    "orchestral": {
        "asc-music": "GPL 2 or later, Michael Kievernagel",
        "flare-game": "CC BY-SA 3.0 or later, Clint Bellanger and others",
    },
    "scifi": {"freedroidrpg-data": "GPL 2 or later, Arvid Picciani, the Freedroid dev team"},
}


def run(*command, folder, stdout=subprocess.PIPE):
    """Run a program in a folder; a UserError says why it failed."""
    try:
        done = subprocess.run(command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not there: this is for Debian and Ubuntu; elsewhere, any folder of "
            "music does"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"{' '.join(map(str, command))} failed ({reason}): run apt-get update, and try again "
            "(Debian 12 has every package)"
        )


def download(package, folder):
    """Download a package's file into a folder, and return the tar file of what it holds."""
    run("apt-get", "download", package, folder=folder)
    (deb,) = folder.glob("*.deb")
    contents = folder / "contents.tar"
    with open(contents, "wb") as file:
        run("dpkg-deb", "--fsys-tarfile", deb, folder=folder, stdout=file)
    deb.unlink()
    return contents


def unpack(contents, package, folder):
    """Take the tracks and the licence out of a package's tar file; return their paths."""
    with tarfile.open(contents) as archive:
        for member in archive:
            path = Path(member.name)
            if MUSIC.fullmatch(member.name) and not NOT_MUSIC.fullmatch(member.name):
                track = f"{path.parent.name}-backing.ogg" if path.name == "song.ogg" else path.name
                target = folder / f"{package}__{track.replace(' ', '_')}"
            elif member.name.endswith(f"/doc/{package}/copyright"):
                target = folder / f"{package}.txt"
            else:
                continue
            if member.isfile():
                with open(target, "wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
    tracks = [path for path in folder.glob("*__*") if soundfile.info(path).duration >= MIN_S]
    licence = folder / f"{package}.txt"
    if not (tracks and licence.exists()):
        raise UserError(f"this {package} lacks its music or its licence: Debian 12's has both")
    return tracks, licence


def fetch(package, tracks_folder, licences_folder):
    """Move a package's tracks into a folder, then its licence: that tells that all are there."""
    licences_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=licences_folder.parent) as temporary:
        contents = download(package, Path(temporary))
        tracks, licence = unpack(contents, package, Path(temporary))
        tracks_folder.mkdir(parents=True, exist_ok=True)
        for path in tracks:
            path.replace(tracks_folder / path.name)
        licence.replace(licences_folder / licence.name)


def prepare(folder):
    """Fill folder/music with what is not there yet; a UserError names what cannot be fetched."""
    licences_folder = folder / "licences"
    errors = {}
    for style, packages in SOURCES.items():
        tracks_folder = folder / "music" / style
        for package, licence in packages.items():
            tracks = tracks_folder.glob(f"{package}__*")
            if not (any(tracks) and (licences_folder / f"{package}.txt").exists()):
                print(f"downloading {package}", flush=True)
                try:
                    fetch(package, tracks_folder, licences_folder)
                except UserError as error:
                    errors[package] = error
                    continue
            n_tracks = sum(1 for _ in tracks_folder.glob(f"{package}__*"))
            print(f"{style}: {n_tracks} tracks of {package}; licence: {licence}")
    if errors:
        raise UserError(f"{next(iter(errors.values()))}; not fetched: {', '.join(errors)}")
    print(f"music in {folder / 'music'}, whole licences in {licences_folder}")


def get_parser():
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to fill")
    return parser


def main(argv=None):
    prepare(get_parser().parse_args(argv).folder.resolve())


if __name__ == "__main__":
    run_script(main)
