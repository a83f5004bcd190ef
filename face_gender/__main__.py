"""All commands under one name: face-gender classify FOLDER"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from face_gender import __version__
from face_gender.console import exit_on_signal, exit_with

# Command: the package that it lies in, and what it is for.
COMMANDS = {
    "classify": ("classify", "label face pictures male or female"),
    "split": ("data", "index a folder of pictures and split it into train, val and test"),
    "train": ("train", "train a recipe on an index"),
    "evaluate": ("evaluate", "measure a model on an index"),
    "audit": ("audit", "find copies, wrong labels and bad pictures in a data set"),
    "export": ("export", "write a model as .onnx, which runs faster on a CPU"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="face-gender",
        description="Train and run a classifier that tells male from female face pictures.",
        epilog="commands: "
        + "; ".join(f"{name}: {purpose}" for name, (_, purpose) in COMMANDS.items())
        + ". face-gender COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    options = parser.parse_args(arguments)
    name = f"face-gender {options.command}"
    package, _ = COMMANDS[options.command]
    code: int = import_module(f"face_gender.{package}.__main__").main(options.arguments, name=name)
    return code


def script() -> None:
    """Run `main` as a program: the entry point that pip installs."""
    if (name := "".join(sys.argv[1:2])) in COMMANDS:  # they take over once there is work to keep
        exit_on_signal(f"face-gender {name}: interrupted, nothing was written.")
    exit_with(main())


if __name__ == "__main__":
    script()
