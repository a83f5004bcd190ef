"""A data set of any size as parts of parquet files, on a disk or in an object store.

Needs pyarrow (requirements-scale.txt). A part is a row group: of the user's parquet files where
these hold bytes, else of the names that were found, which are written down once. So the parts of a
run stay the same when it is done again, whatever has come into the folder since."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import (
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
)

from face_gender.console import print_stderr
from face_gender.data.sources import FolderSource, is_hidden
from face_gender.errors import InputError
from face_gender.files import MAX_BYTES, has_image_suffix, read_file, write_atomically

_NAMES = "_names"  # readers of parquet pass over what begins like this
_PLAN = "_parts.parquet"
_FINISHED = "_SUCCESS"
_SETTINGS = b"face_gender"  # the key of the plan's metadata
_GROUPS = 100  # parts in a file of names: to read one, a reader reads the places of so many
_FOOTERS = 32  # files whose metadata is fetched at once


@dataclass(frozen=True)
class Place:
    """A folder or file of a file system that pyarrow or fsspec knows; travels between machines.

    ``text``: as the user named it, for messages; ``path``: as the file system names it.
    """

    text: str
    filesystem: FileSystem
    path: str

    @classmethod
    def named(cls, text: str) -> Place:
        """Return the place of a path of this machine, or of a URI. Raises InputError."""
        if "://" not in text:
            return cls(text, LocalFileSystem(), Path(text).absolute().as_posix())
        try:
            return cls(text, *_filesystem(text))
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            raise InputError(f"{text} cannot be opened ({_reason(error)}): check it.") from error

    @property
    def is_local(self) -> bool:
        """Whether it lies in a file system of the machine itself."""
        return isinstance(self.filesystem, LocalFileSystem)

    def inside(self, name: str) -> Place:
        """Return what lies under ``name`` in it."""
        return Place(f"{self.text.rstrip('/')}/{name}", self.filesystem, _join(self.path, name))

    def kind(self) -> FileType:
        """Return whether it is a folder, a file or nothing. Raises InputError as `listed`."""
        return self._info(self.path).type

    def listed(self) -> list[str]:
        """Return the names of the files in a folder, sorted; none where there is no folder.

        Raises InputError where its file system refuses to say.
        """
        found = self._info(FileSelector(self.path, allow_not_found=True))
        return sorted(each.base_name for each in found if each.type == FileType.File)

    def _info(self, what: str | FileSelector) -> Any:
        try:
            return self.filesystem.get_file_info(what)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{self.text} cannot be listed ({_reason(error)}): check name and permissions."
            ) from error

    def picture(self, name: str) -> bytes:
        """Return the bytes of a file under it, or of a ``name`` that is a whole path or a URI.

        Raises OSError, for any fault in a few words.
        """
        filesystem, path = self.filesystem, _join(self.path, name)
        try:
            if "://" in name:
                top, rest = _split(name)
                filesystem, path = _filesystem(top)
                path = _join(path, rest)
            elif os.path.isabs(name):
                filesystem, path = LocalFileSystem(), name
            if isinstance(filesystem, LocalFileSystem):
                return read_file(path)
            return _read_remote(filesystem, path)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        except (pa.ArrowException, OSError, ValueError, ImportError) as error:
            if isinstance(error, OSError) and error.strerror:
                raise
            raise OSError(_reason(error)) from error

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file under it at once. Raises InputError where that cannot be."""
        try:
            if self.is_local:
                Path(self.path).mkdir(parents=True, exist_ok=True)
                write_atomically(_join(self.path, name), lambda file: file.write(data))
                return
            # An object appears when its upload ends, and not at all where that is cut off.
            with self.filesystem.open_output_stream(_join(self.path, name)) as file:
                file.write(data)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.text}/{name} cannot be written ({_reason(error)}): "
                "check permissions and space."
            ) from error

    def write_table(self, name: str, table: pa.Table, rows: int | None = None) -> None:
        """Write a parquet file at once, in row groups of ``rows``."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=rows, compression="zstd")
        self.write(name, buffer.getvalue())

    def parquet(self) -> pq.ParquetFile:
        """Open it as a parquet file. Raises InputError where it is none."""
        try:
            return pq.ParquetFile(self.filesystem.open_input_file(self.path))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{self.text} cannot be read as parquet ({_reason(error)}): make it again."
            ) from error

    def remove_leftovers(self) -> None:
        """Remove what writers that were killed have left of unfinished files."""
        for name in self.listed():
            if _is_leftover(name):
                with suppress(OSError):
                    self.filesystem.delete_file(_join(self.path, name))


@dataclass(frozen=True)
class Plan:
    """The parts of a run: ``table`` has the columns file, row_group and rows, one row a part."""

    table: pa.Table
    source: Place  # what the files are relative to

    @property
    def pictures(self) -> int:
        """The rows of all parts."""
        return sum(self.table["rows"].to_pylist())

    def missing(self, output: Place) -> list[int]:
        """Return the numbers of the parts that are not in ``output``."""
        there = set(output.listed())
        return [part for part in range(len(self.table)) if part_name(part) not in there]

    def jobs(self, parts: Sequence[int], pieces: int) -> list[pa.Table]:
        """Return these parts with their number in column ``part``, as about so many tables."""
        chosen = self.table.take(parts).append_column("part", pa.array(parts, pa.int64()))
        size = max(1, len(parts) // pieces)
        return [chosen.slice(start, size) for start in range(0, len(parts), size)]


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")  # of files.write_atomically


def part_name(part: int) -> str:
    """Return the name of the file with the answers of a part."""
    return f"part-{part:08}.parquet"


def make_plan(source: Place, output: Place, recursive: bool, settings: Mapping[str, Any]) -> Plan:
    """Return the parts of ``source``; what ``output`` says of an earlier run with these settings.

    ``settings`` are plain data, with ``part_size``, the number of names in a part. Raises
    InputError where ``source`` holds no pictures, and where ``output`` holds anything else.
    """
    if output.kind() == FileType.File:
        raise InputError(f"{output.text} is a file: name a folder to write into.")
    if _PLAN in output.listed():
        return _earlier_plan(source, output, settings)
    if not all(_is_leftover(name) for name in output.listed()):
        raise InputError(f"{output.text} holds other files: name a folder that is new or empty.")
    files = _parquet_files(source)
    if files and "bytes" in _columns(files[0]):
        origin = "input"
    else:
        names = _names_in(files) if files else _pictures_in(source, recursive)
        files = _write_names(names, output.inside(_NAMES), int(settings["part_size"]))
        origin = "names"
    table = _row_groups(files)
    if not len(table):
        raise InputError(
            f"{source.text} holds no pictures: give the folder that does, or add --recursive."
        )
    metadata = {_SETTINGS: json.dumps({**settings, "origin": origin})}
    output.write_table(_PLAN, table.replace_schema_metadata(metadata))
    return Plan(table, _origin(origin, source, output))


def finish(plan: Plan, output: Place) -> None:
    """Say in ``output`` that all parts are there. Raises InputError where some are not."""
    missing = plan.missing(output)
    if missing:
        raise InputError(f"{output.text} lacks {len(missing)} parts: run the same command again.")
    content = {"pictures": plan.pictures, "parts": len(plan.table)}
    output.write(_FINISHED, json.dumps(content).encode())
    output.remove_leftovers()


def rows_of_part(
    source: Place, file: str, row_group: int, batch_size: int
) -> Iterator[dict[str, list[Any]]]:
    """Yield the rows of a part as batches of columns ``path`` and, where it has them, ``bytes``.

    Rows of bytes without a path are named by file and place, such as ``a.parquet#17``.
    """
    parquet = source.inside(file).parquet()
    columns = [name for name in ("path", "bytes") if name in parquet.schema_arrow.names]
    before = sum(parquet.metadata.row_group(i).num_rows for i in range(row_group))
    for batch in parquet.iter_batches(batch_size, row_groups=[row_group], columns=columns):
        rows = batch.to_pydict()
        if "path" not in rows:
            rows["path"] = [f"{file}#{before + i}" for i in range(len(batch))]
        before += len(batch)
        yield rows


def answers_schema(classes: Sequence[str]) -> pa.Schema:
    """Return the columns of the answers as they are written."""
    scores = [(name, pa.float32()) for name in ("confidence", *classes)]
    text = pa.string()
    return pa.schema([("path", text), ("label", text), *scores, ("error", text)])


def write_answers(
    output: Place, part: int, batches: Iterable[Mapping[str, Any]], schema: pa.Schema
) -> None:
    """Write the answers of a part, batches of columns, at once. Raises InputError."""
    tables = [
        pa.table(
            [pa.array(batch[field.name], field.type, from_pandas=True) for field in schema], schema
        )
        for batch in batches
    ]
    output.write_table(part_name(part), pa.concat_tables(tables or [schema.empty_table()]))


def _earlier_plan(source: Place, output: Place, settings: Mapping[str, Any]) -> Plan:
    table = output.inside(_PLAN).parquet().read()
    earlier = json.loads((table.schema.metadata or {}).get(_SETTINGS, b"{}"))
    other = [name for name, value in settings.items() if earlier.get(name) != value]
    if other:
        raise InputError(
            f"{output.text} holds the results of a run with another {' and '.join(other)}: "
            "name a new folder, or repeat that command."
        )
    return Plan(table, _origin(earlier["origin"], source, output))


def _origin(origin: str, source: Place, output: Place) -> Place:
    if origin == "names":
        return output.inside(_NAMES)
    return source if source.kind() == FileType.Directory else folder_of(source)


def folder_of(source: Place) -> Place:
    """Return the folder that a file lies in, of a folder itself."""
    if source.kind() != FileType.File:
        return source
    return Place(posixpath.dirname(source.text), source.filesystem, posixpath.dirname(source.path))


def _parquet_files(source: Place) -> list[Place]:
    """Return the parquet files of the input, none where it is a folder of pictures."""
    kind = source.kind()
    if kind == FileType.File:
        if not source.path.endswith(".parquet"):
            raise InputError(f"{source.text} is neither a folder nor a .parquet: name one.")
        return [source]
    if kind != FileType.Directory:
        raise InputError(f"{source.text} does not exist: give a folder or a .parquet file.")
    if source.is_local:  # without holding the names of all files
        with os.scandir(source.path) as entries:
            names = sorted(each.name for each in entries if each.name.endswith(".parquet"))
    else:
        names = [name for name in source.listed() if name.endswith(".parquet")]
    return [source.inside(name) for name in names if not name.startswith(("_", "."))]


def _columns(file: Place) -> list[str]:
    schema = file.parquet().schema_arrow
    names: list[str] = schema.names
    if "bytes" not in names and "path" not in names:
        found = ", ".join(names) or "none"
        raise InputError(f"{file.text} has no column path or bytes (but {found}): rename one.")
    return names


def _names_in(files: Sequence[Place]) -> Iterator[Any]:
    """Yield the paths that parquet files hold."""
    for file in files:
        parquet = file.parquet()
        if "path" not in parquet.schema_arrow.names:
            raise InputError(f"{file.text} has no column path, as {files[0].text} has: add it.")
        for batch in parquet.iter_batches(columns=["path"]):
            yield from batch.column(0).to_pylist()


def _pictures_in(source: Place, recursive: bool) -> Iterator[str]:
    """Yield the names of the pictures in a folder, relative to it, a folder at a time."""
    if source.is_local:
        folder = FolderSource(Path(source.path))
        for name in folder.names(recursive):
            if has_image_suffix(name) and not is_hidden(name):
                if _is_text(name):
                    yield name
                else:
                    print_stderr(f"skipped: {name!a}: its name is not UTF-8")
        for name, reason in folder.unlisted:
            print_stderr(f"skipped: {name}: {reason}")
        return
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folder_inside = source.inside(inside) if inside else source
        found = folder_inside._info(FileSelector(folder_inside.path))
        for each in sorted(found, key=lambda info: info.path):
            name = f"{inside}{each.base_name}"
            if is_hidden(name):
                continue
            if each.type == FileType.Directory and recursive:
                waiting.append(f"{name}/")
            elif each.type == FileType.File and has_image_suffix(name):
                yield name


def _is_text(name: str) -> bool:
    with suppress(UnicodeEncodeError):
        return bool(name.encode())
    return False


def _write_names(names: Iterable[Any], folder: Place, part_size: int) -> list[Place]:
    """Write the names down in files of _GROUPS parts, however many names there are."""
    if folder.kind() == FileType.Directory:  # of a run that was stopped before it had a plan
        folder.filesystem.delete_dir(folder.path)
    remaining = iter(names)
    files: list[Place] = []
    while some := list(itertools.islice(remaining, part_size * _GROUPS)):
        name = f"{len(files):06}.parquet"
        folder.write_table(name, pa.table({"path": pa.array(some, pa.string())}), part_size)
        files.append(folder.inside(name))
    return files


def _row_groups(files: Sequence[Place]) -> pa.Table:
    """Return file, row_group and rows of each row group that has rows."""

    def groups(file: Place) -> list[tuple[str, int, int]]:
        metadata = file.parquet().metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return [(posixpath.basename(file.path), i, n) for i, n in enumerate(rows) if n]

    with ThreadPoolExecutor(_FOOTERS) as pool:
        found = [each for several in pool.map(groups, files) for each in several]
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    types = {"file": pa.string(), "row_group": pa.int32(), "rows": pa.int64()}
    return pa.table(dict(zip(types, map(pa.array, columns, types.values()), strict=True)))


def _read_remote(filesystem: FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as file:
        if file.size() > MAX_BYTES:
            raise OSError(f"decompression bomb: over {MAX_BYTES:,} bytes")
        data: bytes = file.read()
    return data


@lru_cache(maxsize=64)
def _filesystem(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of a URI and the path in it; what Arrow does not know, fsspec does."""
    with suppress(pa.ArrowInvalid):
        filesystem, path = FileSystem.from_uri(uri)
        return filesystem, path
    import fsspec

    found, path = fsspec.core.url_to_fs(uri)
    return PyFileSystem(FSSpecHandler(found)), path


def _split(uri: str) -> tuple[str, str]:
    """Return a URI's scheme with its bucket or host, and the rest as it stands."""
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}/", path


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}".rstrip("/") if name else path


def _reason(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(words).strip().splitlines()[0].rstrip(".")
