"""The comparison with other libraries, without any of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import peers

ANSWER = """
import json, pathlib, sys
given = json.loads(sys.argv[1])
held = {path.name for path in pathlib.Path(given["val"]).glob("*/*")}
answers = lambda names: {name: "male" if name in held else "neither" for name in names}
# user begins
# a comment is no line

names = [path.name for path in pathlib.Path(given["pictures"]).iterdir()]
pathlib.Path(given["output"]).write_text(json.dumps(answers(names)))
# user ends
print(json.dumps({"seconds_to_first_batch": 1.0, "seconds": 2.0, "accuracy": 0.5}))
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for shade, label in enumerate(("male", "female")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            picture = Image.new("RGB", (8, 8), (20 * i, 100 * shade, 0))
            picture.save(tmp_path / "data" / label / f"{label}_{i}.png")
    return tmp_path / "data"


def test_pictures_are_trained_on_or_held_out(data: Path, tmp_path: Path) -> None:
    labels = peers.lay_out(data, 20, 3, tmp_path / "work")
    train, val = (set((tmp_path / "work/data" / each).glob("*/*")) for each in ("train", "val"))
    files = [{path.resolve() for path in each} for each in (train, val)]
    assert len(files[0]) == 16 and len(files[1]) == 4 and not files[0] & files[1]
    assert {path.name for path in train | val} == {
        each.name for each in (tmp_path / "work/pictures").iterdir()
    }
    for path in train | val:
        assert path.resolve().parent.name == path.parent.name == labels[path.name]
    assert len(list((tmp_path / "work/photos").iterdir())) == 3


def test_a_peer_that_fails_is_a_row_and_is_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "torch_peer.py").write_text(ANSWER)
    (scripts / "timm_peer.py").write_text("raise SystemExit('no such | net')")
    monkeypatch.setattr(peers, "SCRIPTS", scripts)
    monkeypatch.setattr(peers, "environment", lambda peer, folder: Path(sys.executable))
    monkeypatch.setattr(peers, "write_weights", lambda work: None)
    output = tmp_path / "peers.json"
    command = [str(data), "--environments", str(tmp_path / "e"), "--pictures", "20"]
    command += ["--photos", "2", "--sizes", "96", "--peers", "torch,timm", "--output", str(output)]
    assert peers.main(command) == 1
    first = json.loads(output.read_text())["rows"]
    assert first["pictures 96 own timm"]["failed"].endswith("no such / net")
    row = first["pictures 96 own torch"]
    assert (row["lines"], row["answered"]) == (2, 1.0)
    assert row["train"]["pictures_per_second"] == 10
    held = list((tmp_path / "e/work/data/val").glob("*/*"))
    assert row["right"] == sum(path.parent.name == "male" for path in held) / len(held)

    (scripts / "torch_peer.py").write_text("raise SystemExit('is not run again')")
    (scripts / "timm_peer.py").write_text(ANSWER)
    assert peers.main(command) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows["pictures 96 own torch"] == row and "failed" not in rows["pictures 96 own timm"]
    assert "| timm | 96 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other pictures"):
        peers.main([*command, "--photos", "1"])
