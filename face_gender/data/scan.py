"""Which pictures lie in a folder, an archive or a list, with which label, and which can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from face_gender import CLASSES
from face_gender.data.base_source import OTHER_ENDING, passed_over_as, to_nfc
from face_gender.data.sources import (
    ArchiveSource,
    FolderSource,
    Source,
    is_archive,
    is_hidden,
    open_source,
    passed_over_in_words,
)
from face_gender.data.tables import (
    check_paths,
    class_of,
    decode_1251,
    find_column,
    find_path_column,
    read_cells,
    read_labels,
)
from face_gender.errors import InputError, excerpt, printable
from face_gender.files import has_image_suffix

SEARCHED = 1_000  # rows that tell whether an index belongs to some data
_GIVE_LIST = "give a CSV of the paths and labels of pictures, beside these"


class Scan(NamedTuple):
    """Where to read from, the pictures' sorted names and labels, their groups, other files.

    ``source.passed_over`` says how many files were left out, by kind; ``others`` are those in
    class folders that do not end like a picture; ``unlisted``: (name, reason) of what
    cannot be looked into.
    """

    source: Source
    names: list[str]
    labels: list[int]
    groups: dict[str, str]
    others: tuple[str, ...]
    unlisted: tuple[tuple[str, str], ...] = ()


def scan_data(data: Path) -> Scan:
    """Find the pictures of a folder, an archive or a CSV of paths and labels.

    Class folders are those that `class_of` knows, in an archive at its root or one level down.
    Raises InputError where a class has none.
    """
    if data.suffix.lower() == ".csv" and data.is_file():
        return _scan_list(data)
    if data.is_file() and not is_archive(data):
        raise InputError(f"{data} is neither a folder nor a .zip nor a .csv: give one of these.")
    source = open_source(data)
    found = _in_folder(source) if isinstance(source, FolderSource) else _in_archive(source)
    label_of = {name: label for name, label in found if has_image_suffix(name)}
    for label, folder in enumerate(CLASSES):
        if label not in label_of.values():
            folders = class_folders(label_of)
            found_in = f" (it has some in {_in_words(folders)})" if folders else ""
            raise InputError(
                f"{data} has no pictures in {folder}/{found_in}: put that class's pictures there."
            )
    names = sorted(label_of)
    others = tuple(sorted(name for name, _ in found if name not in label_of))
    if others:
        source.passed_over[OTHER_ENDING] += len(others)
    labels = [label_of[name] for name in names]
    return Scan(source, names, labels, {}, others, tuple(source.unlisted))


def class_folders(label_of: Mapping[str, int]) -> dict[str, int]:
    """Return the folders that tell the class of the pictures in them, with the label."""
    found: dict[str, int] = {}
    places = {(tuple(name.split("/")[:-1][:2]), label) for name, label in label_of.items()}
    for parts, label in places:
        folder = next((part for part in parts if class_of(part) == label), None)
        if folder is not None:
            found[folder] = label
    return found


def taken_in_words(label_of: Mapping[str, int], source: Source) -> str:
    """Return a line about class folders of other names than usual and files passed over, or "".

    ``label_of``: the label of each picture's name.
    """
    folders = class_folders(label_of)
    usual = len(folders) <= len(CLASSES) and folders.keys() <= set(CLASSES)
    taken = [
        f"{_in_words(folder for folder, of in folders.items() if of == label)} as {name}"
        for label, name in enumerate(CLASSES)
    ]
    said = ["" if usual else f"taken: {', '.join(taken)}", passed_over_in_words(source.passed_over)]
    return "; ".join(filter(None, said))


def _in_folder(source: FolderSource) -> list[tuple[str, int]]:
    """Return the visible files in the class folders, with their labels; count all others."""
    data = source.path
    try:
        inside = {entry.name: entry.is_dir() for entry in sorted(data.iterdir())}
    except OSError as error:
        raise InputError(
            f"{data} cannot be listed ({error.strerror}): check its permissions."
        ) from error
    folders = [name for name, is_folder in inside.items() if is_folder]
    if not any(class_of(name) is not None for name in folders):
        inner = [data / name for name in folders if _has_class_folder(data / name)]
        hint = f"did you mean {inner[0]}?" if inner else "name the folder that holds these two."
        shown = [name for name in folders if not is_hidden(f"{name}/")]
        raise InputError(f"{data} holds no folders male/ and female/{_instead(shown)}: {hint}")
    found, rest = [], [name for name, is_folder in inside.items() if not is_folder]
    for folder in folders:
        # Each by itself, and not the whole at once: a link elsewhere may lead into a class.
        inner_source = FolderSource(data / folder, source.pause)
        label, kind = class_of(folder), passed_over_as(f"{folder}/")
        try:
            names = list(inner_source.names())
        except InputError:
            if label is not None:
                raise
            continue  # what is left out need not be readable
        if label is not None:
            found += [(f"{folder}/{name}", label) for name in names]
            source.unlisted += [(f"{folder}/{n}", why) for n, why in inner_source.unlisted]
        elif kind:
            source.passed_over[kind] += len(names) + inner_source.passed_over.total()
            continue
        else:
            rest += [f"{folder}/{name}" for name in names]
        source.passed_over.update(inner_source.passed_over)
    _count_rest(source, rest)
    return found


def _in_archive(source: ArchiveSource) -> list[tuple[str, int]]:
    """Return the visible members in the class folders, with their labels; count all others."""
    names, data = list(source.names()), source.path
    levels = [_at_level(names, depth) for depth in (0, 1)]
    whole = [depth for depth in (0, 1) if len(set(levels[depth].values())) == len(CLASSES)]
    depth = whole[0] if whole else int(not levels[0])
    found = levels[depth]
    tops = sorted({"/".join(name.split("/")[:depth]) for name in found})
    if len(tops) > 1:
        raise InputError(
            f"{data} holds male/ and female/ in several folders "
            f"({', '.join(tops[:3])}): make one archive of each."
        )
    if not found:
        folders = sorted({name.rpartition("/")[0] for name in names} - {""})
        raise InputError(
            f"{data} holds no pictures in male/ and female/, at its root or one level down"
            f"{_instead(folders)}: make an archive of the folder that holds these two."
        )
    top = f"{tops[0]}/" if depth else ""
    _count_rest(source, [name.removeprefix(top) for name in names if name not in found])
    return list(found.items())


def _at_level(names: Iterable[str], depth: int) -> dict[str, int]:
    """Return the names in class folders that lie so many folders deep, with their labels."""
    found = {}
    for name in names:
        parts = name.split("/", depth + 1)
        if len(parts) > depth + 1 and (label := class_of(parts[depth])) is not None:
            found[name] = label
    return found


def _has_class_folder(folder: Path) -> bool:
    with suppress(OSError):
        return any(class_of(each.name) is not None for each in folder.iterdir() if each.is_dir())
    return False


def _instead(folders: Sequence[str]) -> str:
    return f" (it holds {_in_words(folders)})" if folders else ""


def _in_words(folders: Iterable[str]) -> str:
    """Return the first names of folders, with a slash after each."""
    found = sorted(folders)
    listed = ", ".join(f"{printable(excerpt(name))}/" for name in found[:3])
    return listed + (", …" if found[3:] else "")


def _count_rest(source: Source, names: Sequence[str]) -> None:
    """Count files outside the class folders: all those in folders, and pictures beside these."""
    inner = [name for name in names if "/" in name]
    if inner:
        folders = {name.partition("/")[0] for name in inner}
        source.passed_over[f"in other folders ({_in_words(folders)})"] += len(inner)
    beside = sum(
        has_image_suffix(name) and not is_hidden(name) for name in names if "/" not in name
    )
    if beside:
        source.passed_over["beside the class folders"] += beside


def _scan_list(path: Path) -> Scan:
    """Find the pictures that a CSV names, beside the CSV or in class folders."""
    table = read_labels(path, _GIVE_LIST)
    source = FolderSource(path.parent)
    # A backslash is a slash, unless a file has it in its name, as none has on Windows.
    named = [
        each if os.name != "nt" and "\\" in each and source.find(each) else _posix(each)
        for each in table["path"]
    ]
    labels = table["label"].tolist()
    folders = [name for name in sorted(os.listdir(source.path)) if class_of(name) is not None]
    names = [
        _locate(source, name, [each for each in folders if class_of(each) == label])
        for name, label in zip(named, labels, strict=True)
    ]
    check_paths(names, path)
    if not any(os.path.isfile(source.path / name) for name in names[:SEARCHED]):
        example = excerpt(named[0]) if named else "none"
        raise InputError(
            f"{path} names pictures that are not there, such as {example}: "
            "put the CSV into the folder that its paths start from."
        )
    label_of: dict[str, int] = {}
    for name, label in zip(names, labels, strict=True):
        if label_of.setdefault(name, label) != label:
            raise InputError(
                f"{path} gives {excerpt(name)} both labels: leave one of the rows out."
            )
    groups = dict.fromkeys(names, "") if "group" in table else {}
    for name, group in zip(names, table["group"], strict=True) if groups else ():
        if group and groups[name] not in ("", group):
            raise InputError(f"{path} gives {excerpt(name)} two groups: leave one row out.")
        groups[name] = group or groups[name]
    keep = sorted(name for name in label_of if has_image_suffix(name) and not is_hidden(name))
    others = tuple(sorted(label_of.keys() - set(keep)))
    for name in others:
        source.passed_over[passed_over_as(name) or OTHER_ENDING] += 1
    return Scan(source, keep, [label_of[name] for name in keep], groups, others)


def _posix(name: str) -> str:
    """Return a path that a person or a Windows program wrote as the index writes it."""
    return name.replace("\\", "/").removeprefix("./")


def _locate(source: FolderSource, name: str, folders: Sequence[str]) -> str:
    """Return the path, relative to the source, of a picture that a list names.

    It may be absolute, begin with the folder itself, leave out the class folder, be in another
    Unicode normal form or in code page 1251.
    """
    root = source.path.absolute()
    for form in dict.fromkeys((name, decode_1251(name))):
        if Path(form).is_absolute() and Path(form).is_relative_to(root):
            form = Path(form).relative_to(root).as_posix()
        inside = form.removeprefix(f"{root.name}/")
        for each in (form, *(f"{folder}/{form}" for folder in folders), inside):
            found = source.find(each)
            if found and os.path.isfile(root / found):
                return found
    return name


def read_groups(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Read ``path,group``; its paths are relative to the data or to what holds male/, female/.

    Raises InputError for another table.
    """
    table = read_cells(path, "name a CSV with the columns path and group")
    path_column = find_path_column(table)
    group_column = find_column(table, ("group",), lambda *_: True)
    if path_column is None or group_column is None:
        raise InputError(
            f"{path} must have the columns path and group, and has {excerpt(', '.join(table))}."
        )
    group_of: dict[str, str] = {}
    for cell, group in zip(table[path_column], table[group_column], strict=True):
        if group_of.setdefault(to_nfc(_posix(cell)), group) != group:
            raise InputError(f"{path} gives {excerpt(cell)} two groups: leave one of the rows out.")
    legible = {decode_1251(name): group for name, group in group_of.items()}
    found = {}
    for name in names:
        known = to_nfc(_posix(name))
        forms = (known, known.partition("/")[2])
        group = next((of[f] for of in (group_of, legible) for f in forms if f in of), "")
        if group:
            found[name] = group
    if not found:
        example = next(iter(group_of), "nothing")
        raise InputError(
            f"{path} names no picture of the data (it has {excerpt(example)}, the data has "
            f"{names[0]}): its paths must be relative to the data."
        )
    return found
