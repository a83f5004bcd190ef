"""Write a checkpoint as .onnx for --engine: python -m face_gender.export WEIGHTS"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender import RECIPE_NAMES
from face_gender.classify.engines import Precision, check_libraries, describe, graph_path
from face_gender.console import print_stderr, run_command, usage_name
from face_gender.data.sources import Source, find_images
from face_gender.errors import InputError
from face_gender.files import check_output, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from face_gender.data.preprocessing import Preprocessing
    from face_gender.model.checkpoint import Checkpoint

    Batch = dict[str, npt.NDArray[np.float32]]


_NAME = "face_gender.export"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_CALIBRATION_BATCH = 10


def parse(arguments: Sequence[str] | None, name: str = _NAME) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=usage_name(name),
        description="Write the net of a .pth as .onnx, which process.py can run by OpenVINO.",
        epilog="exit codes: 0 written, 1 could not run, 2 usage",
    )
    add = parser.add_argument
    add("weights", type=Path, metavar="WEIGHTS", help="a checkpoint (.pth)")
    add(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="folder or .zip of pictures like those to be labelled (subfolders too), on which 8 "
        "bits are fitted (default: float32, which is slower)",
    )
    add("--pictures", type=int, default=300, metavar="N", help="of them (default: 300)")
    add(
        "--output",
        type=Path,
        metavar="ONNX",
        help="where to write (default: beside WEIGHTS, where process.py looks for it)",
    )
    add("--recipe", choices=RECIPE_NAMES, help="the net of a WEIGHTS that is a plain state_dict")
    add("--classes", metavar="A,B", help="the classes of such a state_dict, in order")
    options = parser.parse_args(arguments)
    if options.pictures < 1:
        parser.error("--pictures must be a whole number above 0")
    return options


def main(arguments: Sequence[str] | None = None, name: str = _NAME) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments, name)
    return run_command(name, lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Write the graph and say where it is."""
    check_libraries(_NEEDED)
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else None
    output = options.output or graph_path(options.weights)
    export(
        options.weights,
        output,
        options.calibrate,
        options.pictures,
        recipe=options.recipe,
        classes=classes,
    )
    print_stderr(f"{output}: {'int8' if options.calibrate else 'float32'}")


def export(
    weights: Path,
    output: Path,
    calibrate: Path | None = None,
    pictures: int = 300,
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write the graph of a .pth to ``output``, atomically.

    It takes ``images``, (n, 3, H, W) float32, normalised, for any n, and gives ``logits``,
    (n, classes): probabilities are softmax(logits / temperature), with the ``temperature`` of its
    metadata, which `engines.describe` has.
    ``calibrate``: a folder or .zip, of whose pictures ``pictures`` are read; the graph then
    calculates in 8 bits, all but its first and last layer. Raises InputError for all that is
    wrong with the files.
    """
    source, names = find_images(calibrate, recursive=True) if calibrate else (None, [])
    check_output(output, [weights, *([calibrate] if calibrate else [])])
    # Imported here: mistakes are answered without torch.
    from face_gender.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(weights, recipe, classes)
    graph = _float_graph(checkpoint, weights)
    if source is not None:
        count = min(pictures, len(names))  # evenly over the names, that all subfolders take part
        chosen = [names[i * len(names) // count] for i in range(count)]
        batches = _batches(checkpoint.preprocessing, source, chosen)
        graph = _int8_graph(graph, batches)
    import onnx

    precision: Precision = "int8" if source is not None else "float32"
    onnx.helper.set_model_props(graph, describe(checkpoint, weights, precision))
    write_atomically(output, lambda file: file.write(graph.SerializeToString()))


def _float_graph(checkpoint: Checkpoint, weights: Path) -> Any:
    """Return the float32 net as onnx.ModelProto, its batch norms folded."""
    import torch

    from face_gender.model.architectures import for_inference

    model, _ = checkpoint.build()
    model = for_inference(model, torch.device("cpu"), torch.float32)
    # Channels last, the mean before the last layer becomes a gather, which OpenVINO answers
    # wrongly in an 8-bit graph.
    model = model.to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 3, checkpoint.preprocessing.height, checkpoint.preprocessing.width)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
    except Exception as error:  # whatever a net is made of that the exporter does not know
        raise InputError(
            f"{weights} cannot be exported ({type(error).__name__} in {checkpoint.recipe.arch}): "
            "use process.py without --engine."
        ) from error
    if program is None:
        raise TypeError("torch.onnx.export returned no program")
    return program.model_proto


def _batches(preprocessing: Preprocessing, source: Source, names: Sequence[str]) -> Iterator[Batch]:
    """Yield the graph's input for these pictures. Raises InputError where none can be read."""
    from face_gender.data.images import UnreadableImage, load_pixels
    from face_gender.data.preprocessing import stack

    found = False
    for start in range(0, len(names), _CALIBRATION_BATCH):
        pictures = []
        for name in names[start : start + _CALIBRATION_BATCH]:
            with suppress(UnreadableImage):
                pictures.append(preprocessing.resized(load_pixels(name, source)))
        if pictures:
            found = True
            yield {"images": preprocessing.normalized(stack(pictures)).contiguous().numpy()}
    if not found:
        raise InputError(f"{source.path} holds no picture that can be read: give another DATA.")


def _int8_graph(graph: Any, batches: Iterator[Batch]) -> Any:
    """Return the graph with 8-bit layers, fitted to the least and largest values in ``batches``.

    The first and the last layer stay as they are: in 8 bits they cost more labels than the rest.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> Batch | None:
            return next(batches, None)

    layers = [each.name for each in graph.graph.node if each.op_type in ("Conv", "Gemm", "MatMul")]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = str(Path(folder) / "int8.onnx")
        quantize_static(
            graph,
            written,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[layers[0], layers[-1]],
        )
        return onnx.load(written)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of themselves: nothing that a user could act on."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
