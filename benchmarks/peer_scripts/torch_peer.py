"""The plain loop, as PyTorch's tutorials and tuning guide write it."""

import json
from pathlib import Path

import peer_watch
import torch

options = peer_watch.options

# user begins
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import datasets, models, transforms  # noqa: E402

transform = transforms.Compose([
    transforms.Resize((options.size, options.size)),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])  # fmt: skip
amp = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": options.bf16}
model = models.resnet18(num_classes=2).to(memory_format=torch.channels_last)


def loader(data, shuffle=False):
    return DataLoader(data, options.batch, shuffle=shuffle, num_workers=options.workers)


def to_input(images):
    return images.to(memory_format=torch.channels_last)


def train():
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.01)
    data = {name: datasets.ImageFolder(getattr(options, name), transform) for name in SPLITS}
    model.train()
    for images, labels in loader(data["train"], shuffle=True):
        with torch.autocast(**amp):
            loss = nn.functional.cross_entropy(model(to_input(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    correct = 0
    with torch.inference_mode(), torch.autocast(**amp):
        for images, labels in loader(data["val"]):
            correct += (model(to_input(images)).argmax(1) == labels).sum().item()
    torch.save({"model": model.state_dict(), "classes": data["train"].classes}, "model.pth")
    return correct / len(data["val"])


class Folder(Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return transform(Image.open(self.paths[i]).convert("RGB"))


def classify():
    saved = torch.load("model.pth")
    model.load_state_dict(saved["model"])
    model.eval()
    data, answers = Folder(options.pictures), []
    with torch.inference_mode(), torch.autocast(**amp):
        for images in loader(data):
            answers += model(to_input(images)).argmax(1).tolist()
    names = [path.name for path in data.paths]
    found = {n: saved["classes"][a] for n, a in zip(names, answers, strict=True)}
    Path(options.output).write_text(json.dumps(found))


# user ends
SPLITS = ("train", "val")

if __name__ == "__main__":
    peer_watch.main(train, classify, model)
