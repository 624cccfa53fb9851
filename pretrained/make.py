"""Take what generate.py needs of a model, in half of its room.

In:  a model folder that train.py wrote.
Out: pretrained/: its parameters, settings and split; its weights in float16.

    python pretrained/make.py model_debian
"""

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from support.command_line import make_parser, run_script
from support.files import load_arrays, write_arrays

COPIED = ("parameters.json", "settings.json", "split.json")
FLOWS = ("detail.npz", "prior.npz")
WEIGHTS = "model.weights.h5"


def halve(array):
    """Float32 becomes float16."""
    return array.astype(np.float16) if array.dtype == np.float32 else array


def make(model, folder):
    """Write the small copy of a model folder into another folder."""
    for name in COPIED:
        shutil.copy(model / name, folder)
    for name in FLOWS:
        arrays = load_arrays(model / name)
        weights = {n: halve(a) for n, a in arrays.items() if n.startswith("weight_")}
        write_arrays(folder / name, **{**arrays, **weights})
    with h5py.File(model / WEIGHTS) as whole, h5py.File(folder / WEIGHTS, "w") as halved:

        def copy(name, part):
            is_array = isinstance(part, h5py.Dataset)
            made = halved.create_dataset(name, data=halve(part[()])) if is_array else None
            (made or halved.require_group(name)).attrs.update(part.attrs)

        whole.visititems(copy)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("model", type=Path, help="folder that train.py wrote")
    make(parser.parse_args(argv).model, FOLDER)


if __name__ == "__main__":
    run_script(main)
