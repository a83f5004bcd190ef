"""Ultralytics' classification trainer with torchvision's ResNet18; on a CPU it has no 16 bits."""

import json
from pathlib import Path

import peer_watch
import torch
from torchvision.models import resnet18

options = peer_watch.options
peer_watch.least = 2

# user begins
from ultralytics import YOLO  # noqa: E402
from ultralytics.models.yolo.classify import ClassificationTrainer  # noqa: E402

# As the files of models that it comes with name torchvision's ResNet18, but with its own head.
NET = """
nc: 2
backbone:
  - [-1, 1, TorchVision, [512, resnet18, null, True, 2]]
head:
  - [-1, 1, nn.AdaptiveAvgPool2d, [1]]
  - [-1, 1, nn.Flatten, [1]]
  - [-1, 1, nn.Linear, [512, nc]]
"""


def train(trainer):
    trainer.train()
    return trainer.metrics["metrics/accuracy_top1"]


def settings():
    Path("resnet18-cls.yaml").write_text(NET)
    return {
        "model": "resnet18-cls.yaml",
        "data": str(Path(options.train).parent),
        "epochs": 1,
        "imgsz": options.size,
        "batch": options.batch,
        "workers": options.workers,
        "device": "cpu",
        "optimizer": "AdamW",
        "lr0": options.rate,
        "weight_decay": 0.01,
        "warmup_epochs": 0,
        "auto_augment": None,
        "erasing": 0.0,
        "scale": 0.0,
        "fliplr": 0.0,
        "hsv_h": 0.0,
        "hsv_s": 0.0,
        "hsv_v": 0.0,
        "project": str(Path.cwd()),
        "name": "run",
        "exist_ok": True,
    }


def classify():
    model, found = YOLO("run/weights/best.pt"), {}
    kind = {"imgsz": options.size, "batch": 16, "device": "cpu", "verbose": False}
    for result in model.predict(options.pictures, stream=True, **kind):
        found[Path(result.path).name] = result.names[result.probs.top1]
    Path(options.output).write_text(json.dumps(found))


# user ends
class Trainer(ClassificationTrainer):
    """Begins with the weights that all peers begin with, where it would download others."""

    def setup_model(self):
        found, weights = super().setup_model(), torch.load(options.init)
        names = resnet18(num_classes=2).state_dict()
        own = self.model.state_dict()
        state = {key: weights[name] for key, name in zip(own, names, strict=True)}
        self.model.load_state_dict(state)
        return found


def started():
    """Return the trainer with that; its epoch ends before it validates its best once more."""
    trainer = Trainer(overrides={**settings(), "pretrained": False, "plots": False})
    trainer.add_callback("on_fit_epoch_end", lambda _: peer_watch.last())
    return trainer


if __name__ == "__main__":
    peer_watch.main(lambda: train(started()), classify)
