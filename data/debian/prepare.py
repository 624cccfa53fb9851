"""Fetch three hours of free music, of two styles, out of Debian's or Ubuntu's packages.

In:  the package archive of this machine, by apt-get download; nothing is installed.
Out: data/debian/music/<style>/<track>.ogg; data/debian/licences/<package>.txt.

    python data/debian/prepare.py
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from support.command_line import make_parser, run_script
from support.errors import UserError

FOLDER = Path(__file__).resolve().parent
MUSIC = re.compile(r".*/music/.+\.ogg")  # in a package
MIN_BYTES = 150_000  # of a track: below are fanfares of a few seconds


class Source(NamedTuple):
    """A package of music."""

    packages: str  # pattern of its name, which holds a version
    licence: str


SOURCES = {  # by style
    "ambient": Source("singularity-music", "CC BY-SA 3.0, Max McCracken"),
    "orchestral": Source(r"wesnoth-1\.\d+-music", "GPL 2 or later, The Battle for Wesnoth Project"),
}


def run(*command, folder=None, stdout=subprocess.PIPE):
    """The output of a program, unless a file takes it; a UserError says why it failed."""
    pipes = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    try:
        done = subprocess.run(command, cwd=folder, **pipes)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not there: this is for Debian and Ubuntu; elsewhere, any folder of "
            "music does"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"{' '.join(map(str, command))} failed ({reason}): run apt-get update, and try again"
        )
    return done.stdout


def find_package(pattern):
    """The newest package whose whole name fits a pattern; a UserError if there is none."""
    names = run("apt-cache", "pkgnames").split()
    found = [name for name in names if re.fullmatch(pattern, name)]
    if not found:
        raise UserError(f"no package is called {pattern}: run apt-get update, and try again")
    return max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def download(package, folder):
    """Download a package's file into a folder, and return the tar file of what it holds."""
    run("apt-get", "download", package, folder=folder)
    (deb,) = folder.glob("*.deb")
    contents = folder / "contents.tar"
    with open(contents, "wb") as file:
        run("dpkg-deb", "--fsys-tarfile", deb, stdout=file)
    deb.unlink()
    return contents


def unpack(contents, package, tracks_folder, licences_folder):
    """Take the tracks and the licence out of a package's tar file."""
    with tarfile.open(contents) as archive:
        for member in archive:
            name = Path(member.name).name
            if MUSIC.fullmatch(member.name) and member.isfile() and member.size >= MIN_BYTES:
                target = tracks_folder / name
            elif name == "copyright" and member.isfile():
                target = licences_folder / f"{package}.txt"
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file)


def prepare(folder):
    """Fill folder/music with the styles that are not there yet, each wholly or not at all."""
    for style, (pattern, licence) in SOURCES.items():
        tracks_folder = folder / "music" / style
        if not tracks_folder.exists():
            package = find_package(pattern)
            print(f"downloading {package}", flush=True)
            tracks_folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
                temporary = Path(temporary)
                contents = download(package, temporary)
                unpack(contents, package, temporary / style, folder / "licences")
                if not (temporary / style).exists():
                    raise UserError(f"{package} holds no music: give another folder of music")
                (temporary / style).rename(tracks_folder)
        n_tracks = sum(1 for _ in tracks_folder.iterdir())
        print(f"{style}: {n_tracks} tracks in {tracks_folder}; licence: {licence}")
    print(f"whole licences in {folder / 'licences'}")


def get_parser():
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to fill")
    return parser


def main(argv=None):
    prepare(get_parser().parse_args(argv).folder.resolve())


if __name__ == "__main__":
    run_script(main)
