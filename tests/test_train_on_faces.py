"""Training on face data sets of all kinds, from the files to a checkpoint that describes and draws."""

import json

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from torch.utils.data import DataLoader

from unif2ace import UniF2acePipeline
from unif2ace.training.data.prepare import prepare
from unif2ace.training.data.rows import StreamedRows
from unif2ace.training.data.sources import open_faces
from unif2ace.training.data.sources.known import CELEBA_NAMES
from unif2ace.training.run_folder import LOG_FILE, read_lines
from unif2ace.training.synthetic.painted.dataset import attributes_of, painted_face
from unif2ace.training.train import train


COUNT = 12


@pytest.fixture(scope="module")
def faces():
    return [painted_face(number, size=32) for number in range(COUNT)]


def folder(path, faces):
    for number, face in enumerate(faces):
        face.image.save(path / f"{number:02}.png")
        (path / f"{number:02}.txt").write_text("\n".join(face.captions))
    return {"path": str(path)}


def celeba(path, faces):
    features = Features({"image": Image(), "celeb_id": Value("int64"), **dict.fromkeys(CELEBA_NAMES, Value("bool"))})
    rows = []
    for number, face in enumerate(faces):
        known = attributes_of(number)
        labels = {name: (number + place) % 3 == 0 for place, name in enumerate(CELEBA_NAMES)}
        labels |= {"Male": known["gender"] == "man", "Bald": known["hair_length"] == "bald", "No_Beard": True}
        rows.append({"image": face.image, "celeb_id": number, **labels})
    Dataset.from_list(rows, features=features).to_parquet(path / "train.parquet")
    return {"path": f"celeba:{path}"}


def celebv_hq(path, faces):
    names = {"appearance": ["male", "bangs", "wearing_hat"], "action": ["smile", "drink"]}
    clips = {}
    (path / "frames").mkdir()
    for number, face in enumerate(faces):
        face.image.save(path / "frames" / f"clip_{number}.jpg")
        values = {kind: [(number + place) % 2 for place in range(len(kinds))] for kind, kinds in names.items()}
        clips[f"clip_{number}"] = {"attributes": values | {"emotion": {"sep_flag": False, "labels": "happy"}}}
    meta = {f"{kind}_mapping": kinds for kind, kinds in names.items()}
    (path / "celebvhq_info.json").write_text(json.dumps({"meta_info": meta, "clips": clips}))
    return {"path": str(path)}


def columns(path, faces):
    lines = []
    for number, face in enumerate(faces):
        face.image.save(path / f"{number}.png")
        question = face.questions[0]
        lines.append({"pic": f"{number}.png", "ask": question.question, "reply": question.answer, "says": "A face."})
    (path / "vqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"path": str(path / "vqa.jsonl"), "columns": "image=pic,caption=says,question=ask,answer=reply"}


ADAPTERS = [folder, celeba, celebv_hq, columns]


def configuration(output, data, steps, **training):
    return {
        "preset": "tiny",
        "data": data,
        "training": {
            "output_dir": str(output),
            "max_steps": steps,
            "per_device_train_batch_size": 6,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **training,
        },
    }


def losses(output):
    return [line["loss"] for line in read_lines(output / LOG_FILE) if "loss" in line]


def run(write, faces, tmp_path, steps, **training):
    (tmp_path / "data").mkdir()
    data = {"source": "faces", "train": write(tmp_path / "data", faces), "passes": 4}
    train(configuration(tmp_path / "run", data, steps, **training))
    found = losses(tmp_path / "run")
    assert len(found) == steps and all(loss == loss for loss in found)
    return found


@pytest.mark.parametrize("write", ADAPTERS)
def test_a_few_steps_on_each_kind(write, faces, tmp_path):
    run(write, faces, tmp_path, steps=2, t2i_fraction=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("write", ADAPTERS)
def test_fifty_steps_on_each_kind_learn(write, faces, tmp_path):
    found = run(write, faces, tmp_path, steps=50, t2i_fraction=0.5)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])
    pipe = UniF2acePipeline.from_pretrained(tmp_path / "run" / "final")
    assert isinstance(pipe.describe(faces[0].image, max_new_tokens=5), str)
    assert pipe("a man", num_inference_steps=2).images[0].size == (16, 16)


def test_a_stream_trains_without_being_read_first(faces, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.png").write_bytes(b"x")
    (tmp_path / "data" / "broken.txt").write_text("a face")
    arguments = folder(tmp_path / "data", faces) | {"streaming": True, "shuffle_buffer": 4}
    data = {"source": "faces", "train": arguments}
    train(configuration(tmp_path / "run", data, 3))
    assert len(losses(tmp_path / "run")) == 3
    started = json.loads((tmp_path / "run" / "run.json").read_text())
    assert started[0]["rows"] is None


def test_prepared_faces_train_without_pictures(faces, tmp_path):
    from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, UniF2aceImageProcessor, get_preset

    (tmp_path / "data").mkdir()
    arguments = folder(tmp_path / "data", faces)
    torch.manual_seed(0)
    model = UniF2aceForConditionalGeneration(get_preset("tiny")).eval()
    model.save_pretrained(tmp_path / "model")
    processor = UniF2aceImageProcessor.from_resolution(model.config.vq_config.resolution)
    stream = open_faces(arguments["path"])
    prepare(stream, tmp_path / "prepared", model.model, processor, {"source": "x"}, shard_size=5, progress=False)
    for path in (tmp_path / "data").glob("*"):
        path.unlink()
    data = {"source": "prepared", "train": {"folder": str(tmp_path / "prepared"), "passes": 2}}
    config = configuration(tmp_path / "run", data, 2, t2i_fraction=0.5)
    train(config)
    assert len(losses(tmp_path / "run")) == 2


def test_streamed_rows_hold_both_tasks_and_go_on(faces, tmp_path):
    source = folder(tmp_path, faces)["path"]
    rows = list(StreamedRows(open_faces(source), passes=2))
    assert [row["task"] for row in rows] == ["t2i", "mmu"] * (2 * COUNT)
    stream = StreamedRows(open_faces(source), passes=2)
    first = []
    for row in stream:
        first.append(row)
        if len(first) == 2 * COUNT + 6:
            break
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = StreamedRows(open_faces(source), passes=2)
    resumed.load_state_dict(state)
    rest = list(resumed)
    words = [str(row.get("text") or row.get("turns")) for row in first + rest]
    assert words == [str(row.get("text") or row.get("turns")) for row in rows]
    shared = DataLoader(StreamedRows(open_faces(source)), batch_size=None, num_workers=2)
    assert sorted(row["task"] for row in shared) == ["mmu"] * COUNT + ["t2i"] * COUNT
