"""Arrays and tables of numbers from files that may be damaged, or made to do harm.

In:  .npy, .npz and the min-max pickle.
Out: numpy arrays and dicts; or a ValueError, and no more memory taken than the file is long.

    values = load_pickled_floats(read_file("min_max_values.pkl", max_bytes=1 << 30))
"""

import io
import math
import os
import pickle
import re
import struct
import zipfile

import numpy as np

from support.files import open_regular

MAGIC = b"\x93NUMPY"
LENGTH_FORMATS = {b"\x01\x00": "<H", b"\x02\x00": "<I"}  # of the header's length, by version
MAX_HEADER_BYTES = 10_000
MAX_SIDE = 1 << 40  # of an array
MAX_ENTRY = 8  # floats in one of a pickle's dicts
# As np.save writes it; what it is not never reaches numpy, which reads it as a Python literal.
HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[biufcSU][1-9]\d*)', 'fortran_order': (?:True|False), "
    rb"'shape': \((?P<shape>(?:(?:0|[1-9]\d*)(?:, ?|(?=\))))*)\),? ?\} *\n?"
)


def read_array(file, n_bytes, check_header=None):
    """The array in an open .npy file of n_bytes.

    Args:
        check_header: (shape, dtype) to a ValueError where this is not wanted.
    Raises:
        ValueError: it is damaged or holds no plain numbers or texts, or check_header's; before
            its data is read.
    """
    magic = file.read(len(MAGIC) + 2)
    length_format = LENGTH_FORMATS.get(magic[len(MAGIC) :])
    if magic[: len(MAGIC)] != MAGIC or not length_format:
        raise ValueError("is damaged, or no array")
    try:
        (length,) = struct.unpack(length_format, file.read(struct.calcsize(length_format)))
        header = HEADER.fullmatch(file.read(min(length, MAX_HEADER_BYTES)))
        dtype = np.dtype(header["descr"].decode())
    except (struct.error, TypeError) as error:
        raise ValueError("is damaged, or no array of numbers") from error
    shape = tuple(map(int, re.findall(rb"\d+", header["shape"])))
    if max(shape, default=0) > MAX_SIDE:
        raise ValueError("is damaged, or too large")
    if math.prod(shape) * dtype.itemsize != n_bytes - file.tell():
        raise ValueError("is damaged: its length is another than its header says")
    if check_header:
        check_header(shape, dtype)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def format_array(array):
    """What np.save writes of an array: the header's bytes, and the array with its data in order."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array


def load_array(path, check_header=None):
    """The array in an .npy file, as read_array() gives it."""
    with open(open_regular(path), "rb") as file:
        return read_array(file, os.fstat(file.fileno()).st_size, check_header)


def load_arrays(path):
    """{name: array} of an .npz file that np.savez wrote.

    Raises:
        ValueError: it is damaged, compressed, or holds objects.
    """
    try:
        with open(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is compressed")
            if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                raise ValueError("it is shorter than what it claims to hold")
            arrays = {}
            for member in members:
                with archive.open(member) as part:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = read_array(part, member.file_size)
            return arrays
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, struct.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise ValueError(f"{path} is damaged ({error})") from error


def load_pickled_floats(data):
    """The dict of dicts of floats in a pickle; nothing that the pickle asks for is run.

    Args:
        data: bytes; the floats are Python's or numpy's.
    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    try:
        values = FloatUnpickler(io.BytesIO(data)).load()
        if any(len(entry) > MAX_ENTRY for entry in values.values()):  # all may be one and the same
            raise ValueError(f"an entry must have at most {MAX_ENTRY} floats")
        return {
            name: {inner: float(number) for inner, number in entry.items()}
            for name, entry in values.items()
        }
    except (pickle.UnpicklingError, ValueError, AttributeError, EOFError, IndexError, KeyError,
            TypeError, OverflowError, struct.error) as error:  # fmt: skip
        raise ValueError(f"no pickle of floats: {error}") from error


class NumpyFloat:
    """Stands in for the dtype and the number of a numpy scalar in a pickle.

    NumpyFloat("f4", ...) with the state (3, "<", ...) is a dtype, and NumpyFloat(dtype, bytes)
    a number of it.
    """

    def __init__(self, what, *values):
        self.order = "<"
        if isinstance(what, NumpyFloat):
            (self.number,) = struct.unpack(what.order + what.code, *values)
        else:
            self.code = {"f2": "e", "f4": "f", "f8": "d"}[check_text(what)]

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">", "=": "="}[check_text(state[1])]

    def __float__(self):
        return self.number


def check_text(value):
    """The value, or an UnpicklingError where it is no text; hashing tuples can take for ever."""
    if type(value) is not str:
        raise pickle.UnpicklingError("it holds something else where a text must be")
    return value


class FloatUnpickler(pickle._Unpickler):
    """Python's interpreter of pickles, with no more instructions than a dict of floats needs.

    It is the one written in Python: that in C takes gigabytes for one great memo index. The one
    thing that a pickle may call is NumpyFloat.
    """

    instructions = (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.EMPTY_DICT,
        pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.UNICODE, pickle.BINFLOAT, pickle.FLOAT,
        pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET,
        pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
        pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_TUPLE,
        pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.NONE, pickle.NEWFALSE,
        pickle.NEWTRUE, pickle.SHORT_BINBYTES, pickle.BINBYTES,
    )  # fmt: skip
    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in instructions}
    numpy_names = {
        ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    }  # fmt: skip

    def find_class(self, module, name):
        if (module, name) in self.numpy_names:
            return NumpyFloat
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def load_setitem(self):
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def load_setitems(self):
        self._set(self.pop_mark())

    def _set(self, items):
        for name, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][check_text(name)] = value

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
