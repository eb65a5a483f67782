"""Data sets of strangers: nothing outside of the folder is read, written or deleted, no bad row ends the command."""

import ast
import io
import json
import os
import tarfile
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from PIL import Image as PILImage

from unif2ace.pipelines.files import json_lines, parse_json, plain_name
from unif2ace.training.data.prepare import PreparedFaces, prepare
from unif2ace.training.data.records import FaceRecord, FolderWriter
from unif2ace.training.data.sources import open_faces
from unif2ace.training.data.sources.stream import BrokenSampleError, open_picture


PACKAGE = Path(__file__).parents[1]


def png(color="red", size=(32, 32)):
    buffer = io.BytesIO()
    PILImage.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# One loader


def calls_that_open_pictures(path: Path):
    """Every place of a file that opens pictures past `open_image`: `Image.open`, other libraries' loaders."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                foreign = node.module.split(".")[0] in (
                    "PIL",
                    "diffusers",
                    "transformers",
                    "cv2",
                    "skimage",
                    "imageio",
                )
                if foreign and alias.name in ("open", "load_image", "imread", "load_images"):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}"
        if isinstance(node, ast.Attribute) and (
            node.attr == "imread" or (node.attr == "open" and ast.unparse(node.value).endswith("Image"))
        ):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_pictures_are_opened_in_one_place_only():
    files = [path for path in PACKAGE.rglob("*.py") if not {"tests", "build", ".venv"} & set(path.parts)]
    files = [path for path in files if "unif2ace-faces" not in path.parts]
    found = [place for path in files for place in calls_that_open_pictures(path)]
    assert [place.split(":")[0] for place in found] == ["modeling_unif2ace/pictures_unif2ace.py"], found


def test_an_eps_file_starts_no_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: started.append(args))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for name in ("a.png", "b.jpg", "c.eps"):
        (tmp_path / name).write_bytes(eps)
        (tmp_path / name).with_suffix(".txt").write_text("a face")
    stream = open_faces(tmp_path)
    assert list(stream) == [] and stream.broken.count == 2 and not started
    assert any(".eps" in note for note in stream.notes)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    from unif2ace.modeling_unif2ace.pictures_unif2ace import UniF2aceImageError, load_image

    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**40)  # a hole: it needs no disk
    for source in (tmp_path / "a.png", b"x" * 11, "iVBORw0KGgo" + "A" * 30):
        with pytest.raises(UniF2aceImageError, match="the limit is"):
            load_image(source, max_bytes=10)
    with pytest.raises(UniF2aceImageError, match="the limit is"):
        load_image(tmp_path / "a.png")


# Names

NAMES = [
    "zip://secret.png::../private.zip",
    "zip://x.png::http://127.0.0.1:{port}/x.zip",
    "http://127.0.0.1:{port}/x.png",
    "https://127.0.0.1:{port}/x.png",
    "file:///etc/hostname",
    "hf://datasets/a/b/x.png",
    "s3://bucket/x.png",
    "simplecache::http://127.0.0.1:{port}/x.png",
    "../secret.png",
    "sub/../../secret.png",
    "%2e%2e/secret.png",
    "sub%2F..%2f..%2fsecret.png",
    "..\\secret.png",
    "/etc/hostname",
    "//server/share/x.png",
    "\\\\server\\share\\x.png",
    "C:\\x.png",
    "C:x.png",
    "~/x.png",
    "link.png",
    "linked/secret.png",
    "pipe.png",
    "a\0b.png",
    "x" * 5000,
    "x/" * 3000,
    "",
    " ",
]


@pytest.fixture
def listener():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


def hostile_folder(tmp_path, port):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "good.png").write_bytes(png("green"))
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "linked").symlink_to(outside)
    os.mkfifo(inside / "pipe.png")
    return inside, [name.format(port=port) for name in NAMES]


@pytest.mark.parametrize("form", ["jsonl", "csv", "table", "struct"])
def test_names_reach_nothing_outside(tmp_path, listener, form):
    port, asked = listener
    inside, names = hostile_folder(tmp_path, port)
    rows = [{"file_name": name, "text": f"caption {n}"} for n, name in enumerate(["good.png", *names])]
    if form == "jsonl":
        write_lines(inside / "metadata.jsonl", rows)
    elif form == "csv":
        rows = [row for row in rows if "\0" not in row["file_name"]]
        body = "".join(f'"{row["file_name"]}","{row["text"]}"\n' for row in rows)
        (inside / "metadata.csv").write_text("file_name,text\n" + body)
    elif form == "table":
        write_lines(inside / "faces.jsonl", rows)
    else:
        features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "text": Value("string")})
        table = [{"image": {"bytes": None, "path": row["file_name"]}, "text": row["text"]} for row in rows]
        Dataset.from_list(table, features=features).to_parquet(inside / "faces.parquet")
    place = {"table": inside / "faces.jsonl", "struct": inside / "faces.parquet"}.get(form, inside)
    columns = (
        None if form in ("jsonl", "csv") else f"image={'image' if form == 'struct' else 'file_name'},caption=text"
    )
    stream = open_faces(place, max_broken=-1, columns=columns)
    assert [record.captions for record in stream] == [["caption 0"]]
    assert stream.broken.count == len(rows) - 1 and not asked
    assert all(len(problem) < 700 for _, problem in stream.broken.named)


FOREIGN = [
    "hf://datasets/me/faces@main/%2e%2e/%2e%2e/other/x.png",
    "hf://datasets/other/faces@main/x.png",
    "zip://a.png::hf://datasets/other/faces/x.zip",
    "hf://datasets/me/faces@main/../../other/x.png",
    "http://127.0.0.1/x.png",
    "/etc/hostname",
    "zip://a.png::zip://b.zip::hf://datasets/me/faces/x.zip",
    "hf://datasets/me/facesother/x.png",
]


def test_a_streamed_repository_gives_its_own_files_only():
    for name in FOREIGN:
        with pytest.raises(BrokenSampleError):
            open_picture({"bytes": None, "path": name}, "hf://datasets/me/faces")


def test_tables_and_texts_that_are_links_out_are_not_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a.png").write_bytes(png())
    (inside / "a.txt").symlink_to(secret)
    (inside / "metadata.jsonl").symlink_to(secret)
    stream = open_faces(inside)
    assert list(stream) == [] and "is a link out of" in stream.broken.named[0][1]
    assert any("metadata.jsonl is not read" in note for note in stream.notes)


def test_a_table_that_is_a_link_out_of_its_folder_is_not_read(tmp_path):
    (tmp_path / "private.jsonl").write_text(json.dumps({"image": "a.png", "text": "the secret"}))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "train.jsonl").symlink_to(tmp_path / "private.jsonl")
    with pytest.raises(ValueError, match="is a link out of"):
        open_faces(inside)


# Rows that cannot be read


DEEP = "[" * 200_000


@pytest.mark.parametrize("form", ["jsonl", "json", "metadata", "csv"])
def test_rows_that_cannot_be_read_are_broken_rows(tmp_path, form):
    (tmp_path / "a.png").write_bytes(png())
    good = json.dumps({"file_name": "a.png", "text": "fine"})
    bad = [DEEP, '{"file_name": "a.png", "text": "half \\ud800"}', '{"a":' * 100_000, "9" * 5000, "nul", "[]", '"x"']
    if form in ("jsonl", "metadata"):
        place = tmp_path / ("metadata.jsonl" if form == "metadata" else "faces.jsonl")
        place.write_text("\n".join([bad[0], good, *bad[1:]]))
        stream = open_faces(tmp_path if form == "metadata" else place, columns="image=file_name,caption=text")
        assert [record.captions for record in stream] == [["fine"]] and stream.broken.count == len(bad)
        assert all(len(problem) < 700 for _, problem in stream.broken.named)
    elif form == "json":
        (tmp_path / "faces.json").write_text(DEEP)
        with pytest.raises(ValueError, match="faces.json is not JSON that can be read"):
            list(open_faces(tmp_path / "faces.json"))
    else:
        (tmp_path / "faces.csv").write_bytes(b'file_name,text\na.png,"' + b"x" * 300_000 + b"\na.png,fine\n\0,\0\n")
        stream = open_faces(tmp_path / "faces.csv")
        assert [record.captions for record in stream] == [["fine"]] and stream.broken.count == 2


def test_json_lines_end_at_a_line_feed_only(tmp_path):
    texts = ["one\u2028two", "three\u0085four", "five\u2029six", "seven\x0ceight\x1cnine"]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert [entry["text"] for _, entry in json_lines(path)] == texts
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"file_name": "a.png", "text": text} for text in texts]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [record.captions[0] for record in open_faces(tmp_path)] == texts
    (tmp_path / "metadata.jsonl").unlink()
    path.unlink()
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    assert next(iter(open_faces(tmp_path))).captions == texts


ALLOWED_SPLITLINES = {"hub_card/remote_code.py"}  # Python code of our own


def test_nothing_splits_the_lines_of_files_by_splitlines():
    """`splitlines` also splits at U+2028, U+0085 and others, which JSON texts and captions may hold."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("tests/", "build/", ".venv/")) or "unif2ace-faces" in name:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and node.attr == "splitlines":
                owner = ast.unparse(node.value)
                if "read_text" in owner or "read_bytes" in owner:
                    found.add(name)
    assert found <= ALLOWED_SPLITLINES, found - ALLOWED_SPLITLINES


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "9" * 5000, "", "{", b"\xff\xfe"])
def test_json_of_strangers_raises_one_sentence(text):
    with pytest.raises(ValueError, match="is not JSON"):
        parse_json(text)


@pytest.mark.parametrize("text", [DEEP, "{a: [", "a: b: c", '{"a":' * 100_000])
def test_configurations_and_results_that_cannot_be_read_are_one_sentence(tmp_path, text):
    from unif2ace.training.evaluation.results import load_results
    from unif2ace.training.train import load_config, override

    (tmp_path / "config.yaml").write_text(text)
    for read in (
        lambda: load_config(tmp_path / "config.yaml"),
        lambda: override({}, [f"training.x={text}"]),
        lambda: load_results(tmp_path / "config.yaml"),
    ):
        with pytest.raises(ValueError, match="is not (YAML|JSON)") as raised:
            read()
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_of_100_000_rows_is_read_in_flat_memory(tmp_path, kind):
    from unif2ace.training.data.sources.readers import read_rows

    path = tmp_path / f"big.{kind}"
    with open(path, "w") as file:
        file.write("file_name,text\n" if kind == "csv" else "")
        for number in range(100_000):
            text = f"a face, number {number} " + "x" * 100
            row = f'{number}.png,"{text}"' if kind == "csv" else json.dumps({"file_name": "a.png", "text": text})
            file.write(row + "\n")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc: the memory of this process cannot be read")
    before = peak = int(statm.read_text().split()[1])
    for number, row in enumerate(read_rows([path])):
        assert row["text"].startswith("a face")
        if number % 5000 == 0:
            peak = max(peak, int(statm.read_text().split()[1]))
    assert number == 99_999 and (peak - before) * os.sysconf("SC_PAGE_SIZE") < 60 * 2**20


def test_a_folder_with_a_long_table_holds_no_text_in_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    size = 2000
    with open(tmp_path / "metadata.jsonl", "w") as file:
        for number in range(20_000):
            file.write(json.dumps({"file_name": "a.png", "text": f"{number} " + "x" * size}) + "\n")
    tracemalloc.start()
    stream = open_faces(tmp_path)
    for number, row in enumerate(stream.rows):
        assert row["__row__"]["text"].startswith(f"{number} ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 19_999 and peak < 20_000 * size / 4


# Archives


def tar_of(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_sample_of_many_large_members_does_not_fill_the_memory(tmp_path):
    zeros = bytes(40 * 2**20)
    tar_of(tmp_path / "big.tar", [(f"a.{n}.png", zeros) for n in range(6)] + [("b.png", png()), ("b.txt", b"fine")])
    del zeros
    tracemalloc.start()
    stream = open_faces(tmp_path / "big.tar", columns="image=png,caption=txt")
    assert [record.captions for record in stream] == [["fine"]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20 and stream.broken.count == 1


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_a_member_that_declares_a_terabyte_ends_the_archive_only(tmp_path, ending):
    path = tmp_path / f"faces.{ending}"
    with tarfile.open(path, "w" if ending == "tar" else "w:gz") as archive:
        for name, content in (("a.png", png()), ("a.txt", b"fine")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        huge = tarfile.TarInfo("huge.png")
        huge.size = 2**40
        archive.fileobj.write(huge.tobuf(tarfile.GNU_FORMAT))
    stream = open_faces(path)
    assert [record.captions for record in stream] == [["fine"]]
    assert "the member has 1,099,511,627,776 bytes, the limit is" in stream.broken.named[0][1]


def test_an_archive_that_unpacks_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("unif2ace.training.data.sources.readers._MAX_UNPACKED", 2**20)
    members = [("a.png", png()), ("a.txt", b"fine")] + [(f"{n}.bin", bytes(2**19)) for n in range(20)]
    tar_of(tmp_path / "endless.tar", members)
    stream = open_faces(tmp_path / "endless.tar", columns="image=png,caption=txt", max_broken=-1)
    assert len(list(stream)) == 1
    assert any("unpacks to more than" in problem for _, problem in stream.broken.named)


# Manifests


@pytest.mark.parametrize(
    "name", ["../victim.txt", "/etc/hostname", "victim.txt", "sub/part-000-00000.parquet", 7, "."]
)
@pytest.mark.parametrize("act", ["read", "go on", "overwrite"])
def test_a_manifest_reads_and_deletes_only_its_own_files(tmp_path, name, act):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "victim.txt").write_text("mine too")
    manifest = {"settings": {"parts": 1, "of": "others"}, "shards": [{"file": name, "rows": 1}], "complete": True}
    (folder / "prepared.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="names the file"):
        if act == "read":
            PreparedFaces(folder)
        else:
            prepare(open_faces("painted:1"), folder, None, None, {}, overwrite=act == "overwrite", progress=False)
    assert victim.read_text() == "mine" and (folder / "victim.txt").read_text() == "mine too"


@pytest.mark.parametrize("content", ["[]", "{", DEEP, '{"shards": {}}', '{"shards": [], "settings": 3}'])
def test_a_manifest_that_is_none_is_one_sentence(tmp_path, content):
    (tmp_path / "prepared.json").write_text(content)
    with pytest.raises(ValueError, match="prepared.json"):
        PreparedFaces(tmp_path)


def test_plain_names():
    assert plain_name("part-000.parquet", "x") == "part-000.parquet"
    for name in ("../a", "a/b", "a\\b", "", "..", "C:a", "a\0b", "x" * 300, None, 3, "http://x"):
        with pytest.raises(ValueError, match="expected a plain file name"):
            plain_name(name, "manifest.json")


# What must not travel


def test_places_and_comments_of_photographs_do_not_travel(tmp_path):
    picture = PILImage.new("RGB", (32, 16), "blue")
    exif = PILImage.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "SECRET description"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.0)  # GPS latitude
    source = tmp_path / "photos"
    source.mkdir()
    picture.save(source / "a.jpg", exif=exif, comment=b"SECRET comment", icc_profile=b"SECRET profile")
    (source / "a.txt").write_text("a face")
    (record,) = open_faces(source)
    assert record.image.size == (16, 32) and not record.image.info and not dict(record.image.getexif())
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        record.image.save(buffer, kind)
        content = buffer.getvalue()
        assert b"SECRET" not in content and b"Exif" not in content and b"GPS" not in content
    with FolderWriter(tmp_path / "out") as writer:
        writer.add(FaceRecord(image=record.image, captions=["a face"], id="a.jpg"))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes() and b"eXIf" not in path.read_bytes()
