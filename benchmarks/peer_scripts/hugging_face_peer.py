"""Hugging Face's guide to image classification: datasets, Trainer, and the pipeline."""

import json
import re
from pathlib import Path

import peer_watch
import torch

options = peer_watch.options

# user begins
import numpy as np  # noqa: E402
from datasets import load_dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModelForImageClassification,
    DefaultDataCollator,
    Trainer,
    TrainingArguments,
    pipeline,
)


def train(published):
    data = load_dataset("imagefolder", data_dir=str(Path(options.train).parent))
    names = data["train"].features["label"].names
    processor = AutoImageProcessor.from_pretrained(published, use_fast=True)
    model = AutoModelForImageClassification.from_pretrained(
        published,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )

    def transforms(rows):
        images = [image.convert("RGB") for image in rows.pop("image")]
        rows["pixel_values"] = processor(images, return_tensors="pt")["pixel_values"]
        return rows

    data = data.with_transform(transforms)
    arguments = TrainingArguments(
        output_dir="run",
        remove_unused_columns=False,
        eval_strategy="epoch",
        learning_rate=options.rate,
        weight_decay=0.01,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        dataloader_num_workers=options.workers,
        num_train_epochs=1,
        use_cpu=True,
        bf16=options.bf16,
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=DefaultDataCollator(),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=processor,
        compute_metrics=lambda pair: {"accuracy": np.mean(pair[0].argmax(1) == pair[1])},
    )
    trainer.train()
    trainer.save_model("model")
    found = (row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row)
    return next(found)


def classify():
    # Its guide advises against batches on a CPU.
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    classifier = pipeline("image-classification", "model", device="cpu", dtype=dtype)
    paths = sorted(Path(options.pictures).iterdir())
    answers = classifier([str(path) for path in paths], top_k=1)
    found = {p.name: each[0]["label"] for p, each in zip(paths, answers, strict=True)}
    Path(options.output).write_text(json.dumps(found))


# user ends
NAMES = (
    (r"^conv1\.", "resnet.embedder.embedder.convolution."),
    (r"^bn1\.", "resnet.embedder.embedder.normalization."),
    (r"^fc\.", "classifier.1."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv1\.", ".layer.0.convolution."),
    (r"\.conv2\.", ".layer.1.convolution."),
    (r"\.bn1\.", ".layer.0.normalization."),
    (r"\.bn2\.", ".layer.1.normalization."),
)


def published():
    """Write the weights that all peers begin with as microsoft/resnet-18 is; return the folder."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic", num_labels=2,
    )  # fmt: skip
    model, state = ResNetForImageClassification(config), {}
    for name, tensor in torch.load(options.init).items():
        stage = re.sub(
            r"^layer(\d)\.",
            lambda found: f"resnet.encoder.stages.{int(found[1]) - 1}.layers.",
            name,
        )
        for old, new in NAMES:
            stage = re.sub(old, new, stage)
        state[stage] = tensor
    model.load_state_dict(state)
    model.save_pretrained("published")
    size = {"shortest_edge": options.size}
    ConvNextImageProcessor(size=size, crop_pct=1.0).save_pretrained("published")
    return "published"


if __name__ == "__main__":
    peer_watch.main(lambda: train(published()), classify)
