"""data/debian/prepare.py, with programs in place of Debian's that know three small packages."""

import os
import runpy
import tarfile

import numpy as np
import pytest
import soundfile

from helpers import ROOT
from support.errors import UserError

PROGRAMS = {"apt-get": 'cp "$ARCHIVE/$2.tar" "$2_1.deb"', "dpkg-deb": 'cat "$2"'}
TRACKS = {  # {package: {file: seconds}}
    "singularity-music": {"music/a b.ogg": 30, "music/fanfare.ogg": 29, "bang.ogg": 30},
    "openclonk-data": {"Music.ocg/c.ogg": 30, "music/sequencer/bass.ogg": 30},
    "fretsonfire-songs-sectoid": {"songs/d e/song.ogg": 30, "songs/d e/guitar.ogg": 30},
}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The folder of packages that the programs know."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for package, tracks in TRACKS.items():
        with tarfile.open(folder / f"{package}.tar", "w") as tar:
            tar.add(__file__, f"./usr/share/doc/{package}/copyright")
            for name, seconds in tracks.items():
                soundfile.write(tmp_path / "member.ogg", np.zeros(seconds * 8000), 8000)
                tar.add(tmp_path / "member.ogg", f"./usr/share/games/x/{name}")
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("ARCHIVE", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def prepare(tmp_path):
    """A function that runs the script for the packages above, and returns the files it made."""
    main = runpy.run_path(str(ROOT / "data" / "debian" / "prepare.py"))["main"]
    for packages in main.__globals__["SOURCES"].values():
        for package in packages.keys() - TRACKS:
            del packages[package]
    folder = tmp_path / "filled"

    def run():
        main(["--folder", str(folder)])
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    return run


def test_music_and_licences_are_taken_out_of_the_packages(tmp_path, archive, prepare, capsys):
    files = prepare()

    assert files == [
        *(f"licences/{package}.txt" for package in sorted(TRACKS)),
        "music/ambient/singularity-music__a_b.ogg",
        "music/easy-listening/openclonk-data__c.ogg",
        "music/metal/fretsonfire-songs-sectoid__d_e-backing.ogg",
    ]
    assert "licence: CC BY-SA 3.0" in capsys.readouterr().out
    (tmp_path / "filled" / files[1]).unlink()  # a run that was interrupted before the licence
    assert prepare() == files
    archive.rename(tmp_path / "gone")
    assert prepare() == files  # what is there is not fetched again


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, archive, prepare):
    package = archive / "openclonk-data.tar"
    package.rename(tmp_path / "later.tar")

    with pytest.raises(UserError, match="apt-get download openclonk-data failed .*: run apt"):
        prepare()

    folder = tmp_path / "filled"
    assert sorted(path.name for path in (folder / "music").iterdir()) == ["ambient", "metal"]
    assert sorted(path.name for path in folder.iterdir()) == ["licences", "music"]
    (tmp_path / "later.tar").rename(package)
    assert len(prepare()) == 6


def test_without_apt_the_remedy_is_said(tmp_path, monkeypatch, prepare):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UserError, match="apt-get is not there: .* any folder of music does"):
        prepare()
