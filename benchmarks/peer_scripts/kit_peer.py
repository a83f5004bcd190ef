"""The kit: its Python interface for training, process.py's own function for a folder."""

import peer_watch
import torch

options = peer_watch.options
peer_watch.least = 2

# user begins
from face_gender.classify.__main__ import main as process  # noqa: E402
from face_gender.model.recipes import get_recipe  # noqa: E402
from face_gender.train.loop import train  # noqa: E402


def recipe():
    size = (options.size, options.size)
    changes = {"epochs": 1, "batch_size": options.batch, "learning_rate": options.rate}
    return get_recipe("resnet18", size, init=options.init, frozen=(), amsgrad=False, **changes)


def fit():
    return [epoch.val_accuracy for epoch in train(recipe(), options.index)]


def classify(*weights):
    process([options.pictures, "--output", options.output, *weights])


# user ends
if __name__ == "__main__":
    if not options.bf16:
        # The kit asks the processor, which does not know that its instructions are not to be used.
        torch.cpu.get_capabilities = dict
    weights = options.shipped if options.mode == "photos" else "model_weights/best.pth"
    peer_watch.main(lambda: fit()[0], lambda: classify("--weights", weights))
