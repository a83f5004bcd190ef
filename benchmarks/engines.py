"""How fast, and how exactly, each engine runs a net on a CPU.

python -m benchmarks.engines --data FOLDER --weights PTH --calibrate FOLDER [--pictures N]

The pictures, prepared as process.py does (with faces aligned, where the weights want that), lie in
memory and are labelled by a thread for each processor, 32 at a time, and 64 where close ones are
asked again. Labels and probabilities are compared with PyTorch's in float32, those of graphs alone
with PyTorch's without mirror images. A second table says what each margin for asking again would
give.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import alternate, machine, medians, options_of, pictures, rate
from face_gender.classify.classifier import Classifier, load_classifier
from face_gender.classify.engines import OpenVino, graph_path
from face_gender.classify.results import Skipped
from face_gender.data.preprocessing import stack
from face_gender.export.graph import export
from face_gender.files import cpu_count
from face_gender.model.architectures import lead_of, probabilities_of
from face_gender.threads import threads_on_one_core_each

Way = Callable[[Tensor], Tensor]
AGAIN = ("OpenVINO int8, close ones again (--engine openvino)", "the same, again in 16 bits")
PLAIN = "PyTorch float32, no mirror images"  # what graphs alone are compared with
MARGINS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = options_of(__doc__, pictures=4_000, repetitions=7)
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--calibrate", type=Path, required=True, help="folder of other pictures")
    parser.add_argument("--timed", type=int, default=640, help="of them, in a repetition")
    return parser.parse_args()


def by_openvino(net: Classifier, engine: OpenVino) -> Way:
    """Return the way that labels pictures (n, 3, H, W) uint8 by the graph alone."""

    def label(pixels: Tensor) -> Tensor:
        outputs = engine.outputs(pixels.permute(0, 2, 3, 1).contiguous().numpy())
        return probabilities_of(torch.from_numpy(outputs), net.checkpoint.temperature)

    return label


def by_onnxruntime(net: Classifier, weights: Path) -> Way:
    """Return the way that labels them by ONNX Runtime, on one processor a call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph_path(weights), options, providers=["CPUExecutionProvider"]
    )

    def label(pixels: Tensor) -> Tensor:
        images = net.checkpoint.preprocessing.normalized(pixels).contiguous().numpy()
        outputs: list[Any] = session.run(None, {"images": images})
        return probabilities_of(torch.from_numpy(outputs[0]), net.checkpoint.temperature)

    return label


def all_ways(options: argparse.Namespace, work: Path) -> dict[str, Way]:
    """Export the weights twice and return every way to run them, the exact one first."""
    float_, int8 = work / "float.pth", work / "int8.pth"
    for path in (float_, int8):
        shutil.copyfile(options.weights, path)
    export(float_, graph_path(float_))
    export(int8, graph_path(int8), options.calibrate)
    full = load_classifier(float_, device="cpu", mixed=False)
    recipe = replace(full.checkpoint.recipe, mirror_within=0.0)
    plain = replace(full, checkpoint=replace(full.checkpoint, recipe=recipe))
    shipped = load_classifier(float_, device="cpu")
    again = load_classifier(int8, engine="openvino")
    assert again.engine is not None
    asked = replace(shipped, engine=again.engine)
    in_16_bits = OpenVino(full.checkpoint, float_, sixteen_bits=True)
    return {
        "PyTorch float32": full.probabilities,
        PLAIN: plain.probabilities,
        f"PyTorch {str(shipped.dtype).removeprefix('torch.')} (without --engine)":
            shipped.probabilities,
        "OpenVINO float32": by_openvino(full, OpenVino(full.checkpoint, float_)),
        "OpenVINO bfloat16": by_openvino(full, in_16_bits),
        "OpenVINO int8 alone": by_openvino(full, again.engine),
        AGAIN[0]: again.probabilities,
        AGAIN[1]: asked.probabilities,
        "ONNX Runtime float32": by_onnxruntime(full, float_),
        "ONNX Runtime int8 alone": by_onnxruntime(full, int8),
    }  # fmt: skip


def label_all(way: Way, batches: Sequence[Tensor]) -> Tensor:
    """Return the probabilities of all batches, labelled by a thread for each processor."""
    with threads_on_one_core_each(cpu_count()) as pool:
        return torch.cat(list(pool.map(way, batches)))


def compare(found: Tensor, expected: Tensor) -> str:
    """Return changed labels, largest and mean change and how many changes exceed 0.02."""
    change = (found - expected).abs().amax(1)
    labels = (found.argmax(1) != expected.argmax(1)).double().mean().item()
    over = (change > 0.02).double().mean().item()
    return f"{labels:.3%} | {change.max():.4f} | {change.mean():.5f} | {over:.3%}"


def prepare(net: Classifier, paths: Sequence[Path]) -> Tensor:
    """Return the pictures that can be read as the net takes them, (n, 3, H, W) uint8."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        read = list(pool.map(lambda path: net.views(None, str(path)), paths))
    return stack([each[0].prepared for each in read if not isinstance(each, Skipped)])


def compare_margins(found: Tensor, expected: Tensor, temperature: float) -> None:
    """Print what asking again would give, by how far ahead the first class is at temperature 1."""
    print("| margin | asked again | labels changed | largest change | mean | over 0.02 |")
    print("|---|---|---|---|---|---|")
    lead = lead_of(found.log() * temperature)
    for margin in MARGINS:
        close = lead < margin
        mixed = torch.where(close[:, None], expected, found)
        print(f"| {margin} | {close.double().mean():.1%} | {compare(mixed, expected)} |")


def main() -> None:
    """Measure and print both tables."""
    options = parse()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        ways = all_ways(options, Path(folder))
        net = load_classifier(options.weights, device="cpu")
        pixels = prepare(net, pictures(options.data, options.pictures, Path(folder)))
        batches = {
            name: [
                each.contiguous(memory_format=torch.channels_last)
                for each in pixels.split(64 if name in AGAIN else 32)
            ]
            for name in ways
        }
        answers = {name: label_all(way, batches[name]) for name, way in ways.items()}
        measured: dict[str, Callable[[], float]] = {}
        for name, way in ways.items():
            few = batches[name][: max(2, options.timed // len(batches[name][0]))]
            measured[name] = partial(timed, way, few)
        speed = medians(alternate(measured, options.repetitions))
    exact, _, base = list(ways)[:3]
    height, width = pixels.shape[2:]
    print(f"{len(pixels)} pictures, {height} x {width}")
    print("| way | images/s | of PyTorch | labels changed | largest change | mean | over 0.02 |")
    print("|---|---|---|---|---|---|---|")
    for name, found in answers.items():
        against = speed[name] / speed[base]
        expected = answers[exact if name in (exact, base, *AGAIN) else PLAIN]
        print(f"| {name} | {speed[name]:,.0f} | {against:.2f} | {compare(found, expected)} |")
    compare_margins(answers["OpenVINO int8 alone"], answers[PLAIN], net.checkpoint.temperature)


def timed(way: Way, batches: Sequence[Tensor]) -> float:
    """Return pictures a second."""
    return rate(sum(map(len, batches)), lambda: label_all(way, batches))


if __name__ == "__main__":
    main()
