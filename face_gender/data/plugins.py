"""Plugins of Pillow for the formats that it does not read itself."""

from __future__ import annotations

import importlib

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")


def missing_plugin(data: bytes) -> str:
    """Register the plugin that a file may need; return what to install where it is missing."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and not _has_plugin("pillow_heif"):
        return "HEIC: to read it, pip install -r requirements-heic.txt"
    if data.startswith(_JPEG_XL) and not _has_plugin("pillow_jxl"):
        return "JPEG XL: to read it, pip install pillow-jxl-plugin"
    return ""


def _has_plugin(name: str) -> bool:
    """Register a plugin of Pillow where it is installed; tell whether it is."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return False
    if name == "pillow_heif":
        module.register_heif_opener()
    return True
