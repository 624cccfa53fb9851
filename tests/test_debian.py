"""data/debian/prepare.py, with programs in place of Debian's that know two small packages."""

import os
import runpy
import tarfile

import numpy as np
import pytest

from helpers import ROOT
from support.errors import UserError

PROGRAMS = {
    "apt-cache": "echo wesnoth-1.9-music; echo wesnoth-1.16-music; echo wesnoth-1.16-data; "
    "echo singularity-music",
    "apt-get": 'cp "$ARCHIVE/$2.tar" "$2_1.deb"',
    "dpkg-deb": 'cat "$2"',
}


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The folder of packages that the programs know."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for package, tracks in (("singularity-music", 2), ("wesnoth-1.16-music", 1)):
        sizes = {f"usr/share/games/x/music/{index}.ogg": 200_000 for index in range(tracks)}
        sizes |= {"usr/share/games/x/music/fanfare.ogg": 999, "usr/share/games/x/bang.ogg": 200_000}
        sizes[f"usr/share/doc/{package}/copyright"] = 10
        with tarfile.open(folder / f"{package}.tar", "w") as tar:
            for name, size in sizes.items():
                path = tmp_path / "member"
                path.write_bytes(np.zeros(size, np.uint8).tobytes())
                tar.add(path, f"./{name}")
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("ARCHIVE", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


def prepare(folder):
    main = runpy.run_path(str(ROOT / "data" / "debian" / "prepare.py"))["main"]
    main(["--folder", str(folder)])
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_music_and_licences_are_taken_out_of_the_packages(tmp_path, archive, capsys):
    folder = tmp_path / "filled"
    folder.mkdir()

    files = prepare(folder)

    assert files == [
        "licences/singularity-music.txt",
        "licences/wesnoth-1.16-music.txt",
        "music/ambient/0.ogg",
        "music/ambient/1.ogg",
        "music/orchestral/0.ogg",
    ]
    assert "licence: CC BY-SA 3.0" in capsys.readouterr().out
    archive.rename(tmp_path / "gone")
    assert prepare(folder) == files  # what is there is not fetched again


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, archive):
    (archive / "wesnoth-1.16-music.tar").unlink()
    folder = tmp_path / "filled"
    folder.mkdir()

    with pytest.raises(UserError, match="apt-get download wesnoth-1.16-music failed .*: run apt"):
        prepare(folder)

    assert sorted(path.name for path in (folder / "music").iterdir()) == ["ambient"]
    assert sorted(path.name for path in folder.iterdir()) == ["licences", "music"]


def test_without_apt_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(UserError, match="apt-cache is not there: .* any folder of music does"):
        prepare(tmp_path)
