"""An exported net, run by OpenVINO: what ``--engine`` needs, and nothing without it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from face_gender.console import without_library_messages
from face_gender.errors import InputError, first_line
from face_gender.files import cpu_count, sha256_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from face_gender.model.checkpoint import Checkpoint


Engine = Literal["torch", "openvino"]
Precision = Literal["float32", "int8"]
# The net is asked again in float32 where the largest probability is ahead of the next by less.
# Beyond this margin 8 bits change no label, and no probability by 0.02; beyond one of 0.1, 1.5 % of
# the probabilities by more (AVX2, docs/performance.md).
MARGIN = 0.7

_OF_THE_GRAPH = ("height", "width", "mean", "std")  # settings of a preprocessing


def graph_path(weights: Path) -> Path:
    """Return where the exported graph of a .pth lies: beside it, as .onnx."""
    return weights.with_suffix(".onnx")


def check_libraries(names: Iterable[str]) -> None:
    """Raise InputError where one of these libraries is missing, without importing any."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"{name} is missing: pip install -r requirements-engine.txt.")


def check_engine(weights: Path) -> None:
    """Raise InputError where OpenVINO or the exported graph of these weights is missing."""
    check_libraries(["openvino"])
    if not graph_path(weights).is_file():
        raise InputError(f"{graph_path(weights)} does not exist: {_cure(weights)}.")


def describe(
    checkpoint: Checkpoint, weights: Path, precision: Precision = "float32"
) -> dict[str, str]:
    """Return a graph's metadata, each value as JSON.

    ``classes``, in the order of the outputs; ``preprocessing``: height and width in pixels,
    resize, mean and std of values in 0..1, and what comes before them; ``recipe``;
    ``temperature``, by which the outputs are still to be divided; ``precision`` of the layers;
    ``weights_sha256`` of the .pth file. Raises OSError where that cannot be read.
    """
    preprocessing = checkpoint.preprocessing.to_dict()
    del preprocessing["augmentation"]  # of training alone
    values = {
        "classes": checkpoint.classes,
        "preprocessing": preprocessing,
        "recipe": checkpoint.recipe.to_dict(),
        "temperature": checkpoint.temperature,
        "precision": precision,
        "weights_sha256": sha256_of(weights),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


class OpenVino:
    """The graph of a checkpoint's file, compiled for all processors, a stream on each.

    ``path``: where it lies.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Path,
        sixteen_bits: bool = False,
        graph: Path | None = None,
    ) -> None:
        """Read and compile it. Raises InputError: not there, damaged, made of other weights.

        ``sixteen_bits``: calculate in bfloat16 what is not in 8 bits. ``graph``: where it lies, if
        not beside the weights.
        """
        if graph is None:
            check_engine(weights)
        self.path = path = graph or graph_path(weights)
        model = _read(path, weights)
        _check_origin(model, describe(checkpoint, weights), path, weights)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if sixteen_bits else "f32",
            "NUM_STREAMS": cpu_count(),
            "INFERENCE_NUM_THREADS": cpu_count(),
            "ENABLE_CPU_PINNING": False,  # other programs may be on those cores
        }
        preprocessing = checkpoint.preprocessing
        from_pixels = _from_pixels(model, checkpoint)
        self._compiled = openvino_core().compile_model(from_pixels, "CPU", options)
        self._local = threading.local()
        # One run before any thread asks: where two ask first at a time, they wait for each other
        # for ever, as the binding imports numpy's interface under a lock of its own.
        import numpy as np

        self.outputs(np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8))

    def outputs(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(n, H, W, 3) uint8, resized -> the net's outputs (n, classes) float32.

        May be called from several threads, each of which runs on one processor.
        """
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer([pixels], share_inputs=True)
        # A copy: the request writes its next outputs to the same place.
        outputs: npt.NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        return outputs


@cache
def openvino_core() -> Any:
    """Return the one OpenVINO of this process, which is kept to its end.

    Its plugin for CPUs gives the thread that loads it another stack for signals, and takes it away
    when the last graph is gone, in whatever thread that is: the next signal, such as Ctrl-C, would
    end the process with a segmentation fault.
    """
    # Importing OpenVINO tells Google Analytics so, unless this library cannot be had.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            f"openvino cannot be imported ({first_line(error)}): install it again, or use "
            "--engine torch."
        ) from error
    return openvino.Core()


def _read(path: Path, weights: Path) -> Any:
    core = openvino_core()
    try:
        with without_library_messages():
            return core.read_model(path)
    except RuntimeError as error:
        raise InputError(f"{path} is not a whole .onnx file: {_cure(weights)}.") from error


def _check_origin(model: Any, expected: dict[str, str], path: Path, weights: Path) -> None:
    for name in ("weights_sha256", "classes", "preprocessing"):
        found, right = _value(model, name), json.loads(expected[name])
        if name == "preprocessing" and isinstance(found, dict):
            # The others decide over the pixels that the graph is given, and may be newer than it.
            found, right = ([each.get(k) for k in _OF_THE_GRAPH] for each in (found, right))
        if found != right:
            raise InputError(f"{path} was not made of {weights} as it is now: {_cure(weights)}.")


def _value(model: Any, name: str) -> Any:
    """Return the value in a graph's metadata under a name of `describe`, None where none."""
    place = ["framework", name]
    with suppress(ValueError, RuntimeError, RecursionError):  # anybody's graph may say anything
        return json.loads(model.get_rt_info(place).value)
    return None


def _from_pixels(model: Any, checkpoint: Checkpoint) -> Any:
    """Return the graph with normalisation in front, which it calculates with less copying."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    mean, std = checkpoint.preprocessing.mean, checkpoint.preprocessing.std
    change = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    change.mean([255 * each for each in mean]).scale([255 * each for each in std])
    return steps.build()


def _cure(weights: Path) -> str:
    return f'run python -m face_gender.export "{weights}" --calibrate FOLDER'
