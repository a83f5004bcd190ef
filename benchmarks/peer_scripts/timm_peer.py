"""timm's dataset, loader, optimiser and net; train.py, in its repository alone, is made of them."""

import json
from pathlib import Path

import peer_watch
import torch

options = peer_watch.options

# user begins
import timm  # noqa: E402
from timm.data import create_dataset, create_loader  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

amp = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": options.bf16}
layout = {"memory_format": torch.channels_last}
device = torch.device("cpu")
model = timm.create_model("resnet18", num_classes=2).to(**layout)


def loader(data, training=False):
    return create_loader(
        data,
        (3, options.size, options.size),
        options.batch,
        is_training=training,
        no_aug=True,
        crop_mode="squash",
        crop_pct=1.0,
        num_workers=options.workers,
        use_prefetcher=False,
        device=device,
    )


def train():
    optimizer = create_optimizer_v2(model, opt="adamw", lr=options.rate, weight_decay=0.01)
    data = create_dataset("", options.train, is_training=True)
    model.train()
    for images, labels in loader(data, training=True):
        with torch.autocast(**amp):
            loss = torch.nn.functional.cross_entropy(model(images.to(**layout)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held, correct = create_dataset("", options.val), 0
    with torch.inference_mode(), torch.autocast(**amp):
        for images, labels in loader(held):
            correct += (model(images.to(**layout)).argmax(1) == labels).sum().item()
    torch.save({"model": model.state_dict(), "classes": data.reader.class_to_idx}, "model.pth")
    return correct / len(held)


def classify():
    saved = torch.load("model.pth")
    model.load_state_dict(saved["model"])
    model.eval()
    data, answers = create_dataset("", options.pictures), []
    with torch.inference_mode(), torch.autocast(**amp):
        for images, _ in loader(data):
            answers += model(images.to(**layout)).argmax(1).tolist()
    names, classes = data.filenames(basename=True), list(saved["classes"])
    found = {n: classes[a] for n, a in zip(names, answers, strict=True)}
    Path(options.output).write_text(json.dumps(found))


# user ends
if __name__ == "__main__":
    peer_watch.main(train, classify, model)
