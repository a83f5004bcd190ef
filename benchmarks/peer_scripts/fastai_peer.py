"""fastai: a Learner over ImageDataLoaders; it has no 16-bit training on a CPU."""

import json
from pathlib import Path

import peer_watch
import torch

options = peer_watch.options

# user begins
from fastai.vision.all import (  # noqa: E402
    CrossEntropyLossFlat,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    get_image_files,
    imagenet_stats,
    load_learner,
    resnet18,
)


def train():
    loaders = ImageDataLoaders.from_folder(
        Path(options.train).parent,
        valid="val",
        item_tfms=Resize(options.size, method="squish"),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=options.batch,
        device=torch.device("cpu"),
    )
    model = started(resnet18(num_classes=2))
    learner = Learner(loaders, model, CrossEntropyLossFlat(), metrics=accuracy, path=".")
    learner.fit_one_cycle(1, options.rate)
    learner.export("model.pkl")
    return learner.recorder.values[-1][-1]


def classify():
    learner = load_learner("model.pkl")
    names = get_image_files(options.pictures)
    scores, _ = learner.get_preds(dl=learner.dls.test_dl(names))
    vocabulary = learner.dls.vocab
    found = {p.name: vocabulary[i] for p, i in zip(names, scores.argmax(1), strict=True)}
    Path(options.output).write_text(json.dumps(found))


# user ends
def started(model):
    """Return the net with the weights that all peers begin with."""
    model.load_state_dict(torch.load(options.init))
    return model


if __name__ == "__main__":
    peer_watch.main(train, classify)
