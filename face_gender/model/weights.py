"""Where weights lie: the user's own, and those that come with the kit. Standard library alone."""

from __future__ import annotations

from pathlib import Path

from face_gender.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def default_weights() -> list[Path]:
    """Return the files that are tried in turn where no weights are given.

    The user's own ``model_weights/best.pth``, then ``model_weights/shipped.pth``, both of the
    checkout that the package lies in (of the working directory where it was installed by pip),
    then the shipped weights that pip installed with the package.
    """
    checkout = _PACKAGE.parent / "model_weights"
    folder = checkout if checkout.is_dir() else Path("model_weights")
    packaged = _PACKAGE / "model_weights" / "shipped.pth"
    return [folder / "best.pth", folder / "shipped.pth", packaged]


def shipped_weights() -> Path:
    """Return the weights that come with the kit. Raises InputError where they are missing."""
    for path in default_weights()[1:]:
        if path.exists():
            return path
    raise InputError(f"{default_weights()[1]} does not exist: install the kit again.")


def find_weights(given: Path | None = None) -> Path:
    """Return the weights to load. Raises InputError where there are none."""
    candidates = [given] if given else default_weights()
    for path in candidates:
        if path.exists():
            return path
    if given:
        raise InputError(f"{given} does not exist: give the path of a .pth file.")
    raise InputError(
        f"{candidates[0]} and {candidates[1]} do not exist: train with train.ipynb, "
        "or use --weights."
    )
