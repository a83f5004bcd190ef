"""A .pth or .safetensors -> plain data and tensors, without running any code that is in it."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from face_gender.data.preprocessing import as_dict
from face_gender.errors import InputError, excerpt
from face_gender.files import open_regular, read_file

# State_dicts and checkpoints of this kit are made of these. torch's own list is longer by things
# that take memory without limit, and by tensors that no net here is loaded from.
_KNOWN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (\w+Storage|Size|device|bool|b?float\d+|u?int\d+)"
)
# Other instructions of a pickle that call something by name.
_CALLS = frozenset(("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"))
# torch stores its members as they are; re-packed files and small members of text may be packed.
_MOST_UNPACKED = 2**26
_OLDER_PICKLES = 5  # before zip files: a number, another, the machine, the content, the keys
_OLDER_HEAD = 2**26  # bytes that these take at most


def read_content(path: Path) -> dict[Any, Any]:
    """Return the plain data and tensors of a file of weights, on the CPU.

    A .safetensors is read where that package is installed. Raises InputError for all that is wrong.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the path of a .pth file.")
    kind = ".safetensors" if path.suffix.lower() == ".safetensors" else ".pth"
    try:
        content = _read_safetensors(path) if kind == ".safetensors" else _read_pth(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give the path of a .pth file.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than weights (a whole pickled model, or no weights at all), and "
            "code in it is never run: save model.state_dict() instead."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): give the path of a .pth file."
        ) from error
    except InputError:
        raise
    except Exception as error:  # a damaged file raises anything, in paragraphs of torch's own
        raise InputError(
            f"{path} is not a whole {kind} file (cut short, damaged, or something else under that "
            "name): copy or train it again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds no weights but a {type(content).__name__}: give a .pth file."
        )
    return as_dict(content)


def _read_pth(path: Path) -> Any:
    check_pth(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a TorchScript file is refused in words of our own
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Of the kit's own, whose sums are right: torch does not compare them, and can omit them.
    if isinstance(content, dict) and "format" in content and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"the bytes of {damaged} have changed")
    return content


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    data = read_file(path, of_any_size=True)
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise InputError(
            f"{path} needs the package safetensors: pip install safetensors, or give a .pth file."
        ) from error
    return load(data)


def check_pth(path: Path) -> None:
    """Raise InputError where a .pth asks for code, or unpacks to far more than its own size.

    Also where it is no .pth at all. Raises OSError where it cannot be read.
    """
    with open_regular(path) as file:
        asked = next((name for name in _names(file, path) if not _KNOWN.fullmatch(name)), None)
    if asked is not None:
        raise InputError(
            f"{path} holds more than weights (it asks for {excerpt(asked.replace(' ', '.'))}), and "
            "code in it is never run: save model.state_dict() instead."
        )


def _names(file: IO[bytes], path: Path) -> Iterator[str]:
    """Yield what the pickles of a .pth ask for by name."""
    start = file.read(4)
    file.seek(0)
    if not start.startswith(b"PK"):
        head = io.BytesIO(file.read(_OLDER_HEAD))
        if not start.startswith(pickle.PROTO):  # a text may look like one until its end
            yield from list(_globals(head))
        for _ in range(_OLDER_PICKLES):
            yield from _globals(head)
        return
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > size + _MOST_UNPACKED:
            raise InputError(f"{path} is a decompression bomb: use the .pth file as it was saved.")
        for member in members:
            if member.filename.endswith(".pkl"):
                yield from _globals(io.BytesIO(archive.read(member)))


def _globals(pickle: IO[bytes]) -> Iterator[str]:
    """Yield what one pickle asks for by name, and leave the file behind it."""
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name == "GLOBAL":
            yield str(argument)
        elif operation.name in _CALLS:
            yield "objects"
