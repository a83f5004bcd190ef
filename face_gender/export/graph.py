"""A checkpoint -> an ONNX graph, in float32 or in 8 bits."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_gender.classify.engines import Precision, describe
from face_gender.console import raised_signals
from face_gender.data.base_source import without_resume
from face_gender.data.sources import Source, find_images
from face_gender.errors import InputError
from face_gender.files import check_output, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from face_gender.data.preprocessing import Preprocessing
    from face_gender.faces.detector import Detector
    from face_gender.model.checkpoint import Checkpoint

    Batch = dict[str, npt.NDArray[np.float32]]


_CALIBRATION_BATCH = 10


@without_resume()
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
    metadata (`engines.describe`). ``calibrate``: a folder or .zip, of which ``pictures`` are read;
    the graph then calculates in 8 bits, all but its first and last layer. Raises InputError for
    all that is wrong with the files.
    """
    source, names = find_images(calibrate, recursive=True) if calibrate else (None, [])
    check_output(output, [weights, *([calibrate] if calibrate else [])])
    # Imported here: mistakes are told without torch.
    from face_gender.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(weights, recipe, classes)
    batches = None
    if source is not None:
        from face_gender.faces.detector import load_detector

        detector = load_detector() if checkpoint.preprocessing.aligns else None
        chosen = evenly(names, pictures)
        batches = calibration_batches(checkpoint.preprocessing, detector, source, chosen)
    write_graph(checkpoint, weights, output, batches)


def write_graph(
    checkpoint: Checkpoint, weights: Path, output: Path, batches: Iterator[Batch] | None
) -> None:
    """Write the graph of the checkpoint in ``weights`` as `export` does, in 8 bits by ``batches``.

    These are the graph's input: ``images`` (n, 3, H, W) float32, normalised. Raises InputError.
    """
    graph = _float_graph(checkpoint, weights)
    precision: Precision = "float32"
    if batches is not None:
        graph, precision = _int8_graph(graph, batches), "int8"
    import onnx

    onnx.helper.set_model_props(graph, describe(checkpoint, weights, precision))
    with raised_signals():
        write_atomically(output, lambda file: file.write(graph.SerializeToString()))


def _float_graph(checkpoint: Checkpoint, weights: Path) -> Any:
    """Return the float32 net as onnx.ModelProto, its batch norms folded."""
    import torch

    from face_gender.model.architectures import for_inference

    model, _ = checkpoint.build()
    model = for_inference(model, torch.device("cpu"), torch.float32)
    # Channels last, the mean before the last layer becomes a gather, which OpenVINO calculates
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
    except Exception as error:  # a net of anything that the exporter does not know
        raise InputError(
            f"{weights} cannot be exported ({type(error).__name__} in {checkpoint.recipe.arch}): "
            "use process.py without --engine."
        ) from error
    if program is None:
        raise TypeError("torch.onnx.export returned no program")
    return program.model_proto


def evenly(names: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` of the names, taken evenly, so that all subfolders take part."""
    count = min(count, len(names))
    return [names[i * len(names) // count] for i in range(count)]


def calibration_batches(
    preprocessing: Preprocessing, detector: Detector | None, source: Source, names: Sequence[str]
) -> Iterator[Batch]:
    """Yield the graph's input for these pictures; ``detector`` None for whole ones.

    Raises InputError where none of them can be read.
    """
    from face_gender.data.images import UnreadableImage, load_pixels
    from face_gender.data.landmarks import prepared
    from face_gender.data.preprocessing import stack

    found = False
    for start in range(0, len(names), _CALIBRATION_BATCH):
        pictures = []
        for name in names[start : start + _CALIBRATION_BATCH]:
            with suppress(UnreadableImage):
                pixels = load_pixels(name, source, preprocessing.at_least)
                pictures.append(prepared(preprocessing, pixels, detector))
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
    with raised_signals(), tempfile.TemporaryDirectory() as folder, _quiet():
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
