"""`unif2ace data`: inspecting a data set, and preparing it so that training reads codes instead of pictures."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import tiny_pipeline

from unif2ace.cli import main
from unif2ace.modeling_unif2ace import UniF2aceForConditionalGeneration, UniF2aceImageProcessor, UniF2aceProcessor
from unif2ace.training.data.collator import UniF2aceCollator
from unif2ace.training.data.features import encode_pictures, fingerprints
from unif2ace.training.data.inspection import contact_sheet, inspect_faces
from unif2ace.training.data.prepare import PreparedFaces, prepare
from unif2ace.training.data.rows import prepared_rows
from unif2ace.training.data.sources import TooManyBrokenSamplesError, open_faces
from unif2ace.training.synthetic.painted.dataset import painted_face


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Ten painted faces as a folder of pictures with captions; two are equal, one is broken."""
    folder = tmp_path_factory.mktemp("faces")
    for number in range(10):
        record = painted_face(number if number < 9 else 0, "test", size=64)
        record.image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("\n".join(record.captions))
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a face")
    return folder


@pytest.fixture(scope="module")
def parts(checkpoint):
    model = UniF2aceForConditionalGeneration.from_pretrained(checkpoint).eval()
    return model.model, UniF2aceProcessor.from_pretrained(checkpoint)


# inspect


def test_inspection_counts(faces):
    found, drawn = inspect_faces(open_faces(faces, max_broken=-1), samples=6, progress=False)
    assert found.records == 10 and found.broken == 1 and found.duplicates == 1
    assert found.sizes == {(64, 64): 10} and not found.small
    assert found.captions_per_record == {3: 10} and len(found.caption_words) == 30
    assert found.stated["gender: man"] + found.stated["gender: woman"] == 30
    assert [record.id for record in drawn] == sorted(record.id for record in drawn) and len(drawn) == 6
    summary = json.loads(json.dumps(found.summary()))
    assert summary["caption_attributes"]["max"] > 10 and summary["sizes"] == {"64x64": 10}


def test_contact_sheet_shows_every_face(faces):
    _, drawn = inspect_faces(open_faces(faces), samples=7, progress=False)
    sheet = np.asarray(contact_sheet(drawn).convert("RGB")).astype(int)
    for number, record in enumerate(drawn):
        left, top = 8 + number % 6 * 200, 8 + number // 6 * (sheet.shape[0] - 8) // 2
        shown = sheet[top : top + 192, left : left + 192]
        wanted = np.asarray(record.image.resize((192, 192), Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(shown - wanted).mean() < 2
        assert (sheet[top + 194 : top + 270, left : left + 192] < 100).any()  # there are words below
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([])


def test_inspect_command(faces, tmp_path, capsys):
    arguments = ["data", "inspect", str(faces), "--sheet", str(tmp_path / "s" / "sheet.png")]
    assert main([*arguments, "--report", str(tmp_path / "report.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("10 usable samples, 1 broken")
    assert any("broken.png: the picture is not a picture" in line for line in lines)
    with Image.open(tmp_path / "s" / "sheet.png") as sheet:
        assert sheet.width > 1000
    assert json.loads((tmp_path / "report.json").read_text())["records"] == 10
    assert main(["data", "inspect", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_sources_command_lists_the_registry(capsys):
    assert main(["data", "sources"]) == 0
    out = capsys.readouterr().out
    assert "celebv-hq" in out and "Hub: flwrlabs/celeba" in out and "terms: non-commercial research" in out


# prepare


def run_prepare(faces, folder, parts, **options):
    model, processor = parts
    made_with = {"source": "faces", "weights": fingerprints(model)}
    options = {"shard_size": 4, "batch_size": 3, "progress": False} | options
    stream = options.pop("stream", None) or open_faces(faces)
    return prepare(stream, folder, model, processor.image_processor, made_with, **options)


def test_prepared_features_are_those_of_the_model(faces, tmp_path, parts):
    run_prepare(faces, tmp_path / "prepared", parts)
    model, processor = parts
    prepared, records = PreparedFaces(tmp_path / "prepared"), list(open_faces(faces))
    assert len(prepared) == len(records) == 10
    assert sorted(path.name for path in (tmp_path / "prepared").glob("*.parquet")) == [
        f"part-000-0000{n}.parquet" for n in range(3)
    ]
    for number, record in enumerate(records):
        found = prepared[number]
        assert (found.id, found.captions, found.source) == (record.id, record.captions, record.source)
        pixels = processor.image_processor(record.image, return_tensors="pt")["pixel_values"]
        assert prepared.columns["codes"][number].tolist() == model.encode_images(pixels)[0].tolist()
        for name, ask in (("clip_features", model.encode_clip), ("face_features", model.encode_face)):
            wanted = ask(pixels)[0]
            found = torch.from_numpy(prepared.columns[name][number])
            assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=2e-3, rtol=2e-3)


def test_a_face_encoder_that_wants_aligned_faces_gets_them(faces, parts, monkeypatch):
    model, processor = parts
    images = [record.image for record in open_faces(faces)][:2]
    size = model.face_encoder.config.image_size
    monkeypatch.setattr(model.face_encoder.config, "alignment", "five_points")
    turn = lambda image, size: image.rotate(180).resize((size, size))  # noqa: E731
    monkeypatch.setattr("unif2ace.modeling_unif2ace.image_processing_unif2ace.align_largest_face", turn)
    aligning = UniF2aceImageProcessor.from_resolution(model.config.vq_config.resolution, face_size=size)
    pixels = aligning(images, return_tensors="pt")
    found = encode_pictures(model, pixels)["face_features"]
    turned = torch.stack([torch.from_numpy(np.array(turn(image, size))) for image in images]).permute(0, 3, 1, 2)
    wanted = model.encode_face(pixels["pixel_values"], turned / 127.5 - 1).numpy()
    assert np.allclose(found, wanted, atol=2e-3, rtol=2e-3)
    whole = encode_pictures(model, {"pixel_values": pixels["pixel_values"]})["face_features"]
    assert not np.allclose(found, whole, atol=2e-3, rtol=2e-3)
    assert set(encode_pictures(model, pixels, features=False)) == {"codes"}


def test_an_interrupted_preparation_goes_on(faces, tmp_path, parts):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_prepare(faces, whole, parts)

    class Interrupted(Exception):
        pass

    stream = open_faces(faces)
    convert, calls = stream.convert, []

    def interrupted(row):
        calls.append(row)
        if len(calls) > 6:
            raise Interrupted
        return convert(row)

    stream.convert = interrupted
    with pytest.raises(Interrupted):
        run_prepare(faces, cut, parts, stream=stream)
    assert [path.name for path in cut.glob("*.parquet")] == ["part-000-00000.parquet"]
    with pytest.raises(FileNotFoundError, match="0 of 1 complete parts"):
        PreparedFaces(cut)
    before = (cut / "part-000-00000.parquet").stat().st_mtime_ns
    run_prepare(faces, cut, parts)
    assert (cut / "part-000-00000.parquet").stat().st_mtime_ns == before
    wanted, found = PreparedFaces(whole), PreparedFaces(cut)
    assert [record.id for record in found] == [record.id for record in wanted]
    assert all((found.columns["codes"][n] == wanted.columns["codes"][n]).all() for n in range(len(wanted)))
    assert not list(cut.glob(".part*"))  # no file that was being written


KILLED = """
import sys, time
from unif2ace.training.data.prepare import prepare
from unif2ace.training.data.sources import open_faces
from tiny_checkpoint import tiny_pipeline
pipe = tiny_pipeline()
def slowly(images, **options):
    time.sleep(0.3)
    return pipe.processor.image_processor(images, **options)
made_with = {"source": "faces"}
model = pipe.transformer.model
prepare(open_faces(sys.argv[1]), sys.argv[2], model, slowly, made_with, shard_size=2, batch_size=1, progress=False)
"""


def test_a_killed_preparation_goes_on_and_only_one_runs_at_a_time(faces, tmp_path):
    pipe = tiny_pipeline()
    folder, options = tmp_path / "killed", {"shard_size": 2, "progress": False}
    made_with = {"source": "faces"}

    def run(where):
        return prepare(
            open_faces(faces), where, pipe.transformer.model, pipe.processor.image_processor, made_with, **options
        )

    helpers = str(Path(__file__).parent / "helpers")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(faces), str(folder)], env=environment)
    try:
        deadline = time.monotonic() + 200
        while len(list(folder.glob("part-*.parquet"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(ValueError, match="another run writes to"):
            run(folder)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    (folder / ".part-000-00002-x.part.parquet").write_bytes(b"half a file")
    run(folder)
    run(tmp_path / "whole")
    wanted, found = PreparedFaces(tmp_path / "whole"), PreparedFaces(folder)
    assert [record.id for record in found] == [record.id for record in wanted]
    assert all((found.columns["codes"][n] == wanted.columns["codes"][n]).all() for n in range(len(wanted)))
    assert not list(folder.glob(".part*"))


def test_a_full_disk_loses_nothing_and_a_read_only_folder_is_read(faces, tmp_path, parts, monkeypatch):
    import pyarrow.parquet

    write = pyarrow.parquet.write_table

    def full(table, path, **options):
        if "00001" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(table, path, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run_prepare(faces, tmp_path, parts)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["part-000-00000.parquet"]
    monkeypatch.undo()
    run_prepare(faces, tmp_path, parts)

    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("unif2ace.training.data.prepare.replacing", read_only)
    assert len(PreparedFaces(tmp_path)) == 10 and not list(tmp_path.glob("*.arrow"))
    (tmp_path / "part-000-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="lacks part-000-00001.parquet"):
        PreparedFaces(tmp_path)


def test_preparations_are_not_mixed(faces, tmp_path, parts):
    run_prepare(faces, tmp_path, parts)
    with pytest.raises(ValueError, match="features=True, but False is asked for: .* --overwrite"):
        run_prepare(faces, tmp_path, parts, features=False)
    run_prepare(faces, tmp_path, parts, features=False, overwrite=True, shard_size=100)
    assert set(PreparedFaces(tmp_path).columns) == {"codes"}
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_machines_share_a_preparation(faces, tmp_path, parts):
    run_prepare(faces, tmp_path, parts, part=(0, 2))
    with pytest.raises(FileNotFoundError, match="1 of 2 complete parts"):
        PreparedFaces(tmp_path)
    run_prepare(faces, tmp_path, parts, part=(1, 2))
    assert sorted(record.id for record in PreparedFaces(tmp_path)) == sorted(f"{number}.png" for number in range(10))


def test_a_preparation_stops_at_too_many_broken_samples(faces, tmp_path, parts):
    with pytest.raises(TooManyBrokenSamplesError):
        run_prepare(faces, tmp_path, parts, stream=open_faces(faces, max_broken=0))


def test_prepare_command_and_rows_for_the_collator(faces, tmp_path, checkpoint, parts, capsys):
    folder = tmp_path / "prepared"
    arguments = ["data", "prepare", str(faces), "-o", str(folder), "--model", str(checkpoint), "--shard-size", "6"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == ["1 broken samples left out", f"{folder}: 10 pictures in 2 files"]
    model, processor = parts
    rows = prepared_rows(folder, passes=2, seed=3)
    assert len(rows) == 40
    t2i, mmu = rows.tasks.index("t2i"), rows.tasks.index("mmu")
    assert isinstance(rows[t2i]["text"], str) and rows[mmu]["turns"] and "image" not in rows[mmu]
    assert {"codes", "clip_features", "face_features"} <= set(rows[mmu])
    batch = UniF2aceCollator(processor.tokenizer, model.config, processor.image_processor)(
        [rows[t2i] | {"pixel_values": torch.zeros(3, 16, 16)}, rows[mmu] | {"pixel_values": torch.zeros(3, 16, 16)}]
    )
    assert batch["input_ids"].shape[0] == 2 and "needs_codes" not in batch
    for path in Path(folder).glob("*.parquet"):
        assert path.stat().st_mode & 0o044  # others may read what was shared
