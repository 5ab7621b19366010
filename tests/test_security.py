"""Attacks, each tried for real: what somebody else made must not run code, leave its folder, or fill the machine.

No archive is unpacked here: torch files and .npz are zips whose members torch and numpy read in memory, by their own
names (`test_nothing_unpacks_archives`).
"""

import ast
import hashlib
import http.server
import io
import pickle
import re
import shutil
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

import run
from data.datasets.dataset import ReadOptions
from data.datasets.layout import read_points
from data.datasets.nuscenes import NuScenes, NuScenesSubmission
from data.datasets.semantic_kitti import SemanticKitti
from data.files import InputError, inside, read_text
from data.frame import Needs
from data.images import read_image
from data.subsets import choose_subset, write_subset
from data.superpixels import load as load_map
from slidr.networks.model_file import backbone_weights, head_layers, write_model
from slidr.networks.student import Student, StudentSpec
from slidr.teachers import TEACHERS, load_teacher
from slidr.teachers.weights import Entry
from slidr.tensor_files import read_tensors
from slidr.training.checkpoint import Checkpoints
from slidr.training.replay import read_replay
from tests.data.test_nuscenes import make_tables, write_tables, write_world
from tests.test_layering import ROOT, SOURCES, imports

EVERYTHING = Needs(cameras="all", labels=True, pose=True)
SPEC = StudentSpec(architecture="res16unet14c", width=0.25, grid="cylindrical", voxel_size=(0.2, 1, 0.2))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Everything happens in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """`refused("convert", ...)` -> the one sentence of a command that must exit with 2."""

    def sentence(*words: object) -> str:
        capsys.readouterr()
        assert run.main([str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"run.py {words[0]}: ") and len(line) < 1000
        return line

    return sentence


# What the sources may not even say


CODE_FROM_DATA = {"pickle", "dill", "marshal", "shelve", "joblib", "subprocess", "pty", "ctypes"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"}
UNSAFE_YAML = {
    f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "FullLoader", "UnsafeLoader")
}
TRACKED = [path for path in sorted(ROOT.rglob("*.py")) if "/." not in f"/{path.relative_to(ROOT)}"]


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """(what is called, its keywords) of every call in a file."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [(ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords}) for n in nodes]


def test_every_load_in_the_repository_is_safe():
    loads = 0
    for path in TRACKED:
        for called, keywords in calls(path):
            if called == "torch.load":
                loads += 1
                assert keywords.get("weights_only") == "True", path
            assert keywords.get("allow_pickle", "False") == "False", path
            assert called not in UNSAFE_YAML, path
            assert keywords.get("shell", "False") == "False", path
    assert loads  # else the search is broken


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_runs_makes_no_code_of_data(path):
    assert not imports(path) & CODE_FROM_DATA
    assert not {called for called, _ in calls(path)} & RUNS_TEXT


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpacks_archives(path):
    unpacking = {"extract", "extractall", "unpack_archive"}
    assert not unpacking & {called.split(".")[-1] for called, _ in calls(path)} and "tarfile" not in imports(path)


def test_downloads_are_encrypted_and_checked():
    for entry in TEACHERS.values():
        assert entry.url is None or entry.url.startswith("https://")
        assert (entry.sha256 is None) == (entry.megabytes == 0)


# Pickles


class Payload:
    """Unpickling it creates the file `owned`."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def armed(file: Path) -> Path:
    """The file, whose payload goes off where it is unpickled without care."""
    pickle.loads(pickle.dumps(Payload()))
    Path("owned").unlink()
    return file


def torch_zip(path: Path) -> None:
    torch.save({"weights": Payload(), "spec": SPEC.model_dump(), "stage": "pretrain", "classes": []}, path)


def torch_before_1_6(path: Path) -> None:
    torch.save({"model_points": Payload()}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(), protocol=2))


def torch_tar(path: Path) -> None:
    """The format of torch 0.1, which torch unpacks; its member climbs out."""
    Path("member").write_bytes(pickle.dumps(Payload()))
    with tarfile.open(path, "w") as tar:
        tar.add("member", "../owned")


def torch_script(path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch_zip, torch_before_1_6, bare_pickle, torch_tar, torch_script])
def test_a_pickle_in_place_of_a_checkpoint(refused, tmp_path, make):
    file = tmp_path / "hostile.pt"
    make(file)
    armed(file)
    for words in (
        ["evaluate", "--weights", file],
        ["convert", "--source", file, "--target", "x.pt"],
        ["convert", "--source", file, "--target", "x.pt", "--to", "minkowski"],
    ):
        assert re.search(r"hostile.pt is .*no checkpoint of plain tensors", refused(*words))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    shutil.copy(file, f"step-000000001-{digest}.pt")  # an attacker can count, too
    for load in (
        lambda: load_teacher("resnet_small", str(file)),
        lambda: read_replay(file),
    ):
        with pytest.raises(InputError, match=r"\.pt is .*no checkpoint of plain tensors"):
            load()
    assert Checkpoints(tmp_path, 1).newest() is None
    assert not Path("owned").exists() and not Path("x.pt").exists()


@pytest.fixture
def world(tmp_path) -> Path:
    """A nuScenes root of one keyframe, scene-0103."""
    write_world(tmp_path / "world", make_tables({"scene-0103": [10]}))
    return tmp_path / "world"


def poison(world: Path, cache: Path, **arrays: np.ndarray) -> None:
    """The index of `world`, up to date, some of its arrays replaced."""
    NuScenes(world, "all", index_cache=cache)
    with np.load(cache) as stored:
        content = {name: stored[name] for name in stored.files}
    np.savez(cache, **content | arrays)


def test_a_pickle_in_the_index(world, tmp_path):
    cache = armed(tmp_path / "index.npz")
    poison(world, cache, token=np.array([[Payload()]], object))
    assert len(NuScenes(world, "all", index_cache=cache)) == 1  # made again
    cache.write_bytes(pickle.dumps(Payload()))
    assert len(NuScenes(world, "all", index_cache=cache)) == 1
    assert not Path("owned").exists()


# Checkpoints of plain tensors that are hostile all the same


def save_changed(**change: object) -> Path:
    student = Student(SPEC, 3, bn_momentum=0.1)
    parts = {"backbone": backbone_weights(student), "point_head": head_layers(student)}
    write_model(Path("model.pt"), stage="pretrain", spec=SPEC, **parts)
    torch.save(torch.load("model.pt", weights_only=True) | change, "model.pt")
    return Path("model.pt")


@pytest.mark.parametrize(
    "change",
    [
        *({"spec": SPEC.model_dump() | part} for part in ({"width": -1.0}, {"width": float("nan")}, {"grid": "other"})),
        *({"spec": SPEC.model_dump() | {"voxel_size": size}} for size in ((0, 1, 1), (float("nan"), 1, 1), (1, 1))),
        {"spec": SPEC.model_dump() | {"architecture": "../other"}},
        {"spec": SPEC.model_dump() | {"other": 1}},
        {"spec": 3},
        {"stage": 3},
        {"classes": 3},
        {"classes": [3]},
        {"classes": ["\x1b]0;owned\x07"] * 17},
        {"classes": ["x" * 1000] * 17},
        {"stage": "\x1b[2J"},
        {"input": {"columns": ["\x1b[2J"] * 4}},
        {"task": {"dataset": "kitti"}},
        {"backbone": [torch.zeros(1)]},
        {"backbone": {"final.weight": "text"}},
        {"backbone": {3: torch.zeros(1)}},
        {"point_head": [{"weight": torch.zeros(())}]},
        {"point_head": [{"weight": torch.zeros(3, 24), "bias": torch.zeros(2)}]},
        {"point_head": [{"weight": torch.zeros(n, 24), "bias": torch.zeros(n)} for n in (3, 2)]},
        {"image_head": 3},
        {"input": {"intensity_scale": float("nan")}},
        {"teacher": {"name": "resnet"}},
        {"pretraining": "text"},
        {"format": 1},
        {"format": 3},
    ],
    ids=str,
)
def test_a_model_whose_content_is_not_what_it_should_be(refused, change):
    file = save_changed(**change)
    assert "model.pt is no model.pt of this program" in refused("evaluate", "--weights", file)
    assert "no model.pt" in refused("convert", "--source", file, "--target", "x.pt", "--to", "minkowski")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "odd",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor([t]),
    ],
    ids=["sparse", "meta", "quantised", "nested"],
)
def test_tensors_that_are_not_plain(odd):
    torch.save({"nest": {"list": [odd(torch.ones(2, 2))]}}, "odd.pt")
    with pytest.raises(InputError, match="odd.pt is no checkpoint of plain tensors"):
        read_tensors("odd.pt")


def test_a_checkpoint_that_holds_itself():
    circle = {}
    circle["self"] = circle
    torch.save(circle, "circle.pt")
    with pytest.raises(InputError, match="circle.pt is no checkpoint"):
        read_tensors("circle.pt")


def test_a_small_file_that_asks_for_a_giant_network(refused):
    """A tensor of 10^13 numbers may be a view of one; an archive's parts may be packed, or overlap."""
    giant = torch.zeros(1, 1, 1).expand(1, 24, 10**13)
    torch.save({"model_points": {"final.kernel": giant[0]}}, "theirs.pt")
    assert "no checkpoint of plain tensors" in refused("convert", "--source", "theirs.pt", "--target", "x.pt")
    torch.save({"model_points": {"final.kernel": torch.zeros(1000, 1000)}}, "theirs.pt")
    with zipfile.ZipFile("theirs.pt") as plain, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    sentence = refused("convert", "--source", "bomb.pt", "--target", "x.pt")
    assert "claims to hold more than its own size" in sentence
    file = save_changed(spec=SPEC.model_dump() | {"width": 64.0})
    assert "needs [" in refused("show", "--weights", file)  # refused before such a network is built
    with pytest.raises(InputError, match="width 1e.09 .* does not fit into memory; lower --width"):
        Student(SPEC.model_copy(update={"width": 1e9}), 3, bn_momentum=0.1)


# Downloads, from a server on this machine


CONTENT = bytes(range(256)) * 1000  # 256,000 of the 1,000,000 bytes that the file is said to have at most


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as `how` says."""

    how = "honest"

    def do_GET(self):
        self.send_response(200)
        promised = {"honest": len(CONTENT), "wrong bytes": len(CONTENT), "fewer": 1000, "cut off": len(CONTENT)}
        promised["promises too much"] = 10**15
        if self.how in promised:
            self.send_header("Content-Length", str(promised[self.how]))
        self.end_headers()
        try:
            if self.how == "endless":
                while True:
                    self.wfile.write(CONTENT)
            content = CONTENT[:-1] + b"x" if self.how == "wrong bytes" else CONTENT
            self.wfile.write(content[:1000] if self.how in ("cut off", "cut off, nothing promised") else content)
        except OSError:
            pass  # the client hung up

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    """A server's address, under which the teacher `tiny` is said to be."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/tiny.pth"
        entry = Entry(TEACHERS["resnet_small"].build, url, hashlib.sha256(CONTENT).hexdigest(), 1)
        monkeypatch.setitem(TEACHERS, "tiny", entry)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield url
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("wrong bytes", "arrived with the SHA-256"),
        ("fewer", "arrived with the SHA-256"),
        ("cut off", "ended after 1,000 of 256,000 bytes"),
        ("cut off, nothing promised", "arrived with the SHA-256"),
        ("promises too much", "sends more than the 1,000,000 bytes"),
        ("endless", "sends more than the 1,000,000 bytes"),
    ],
)
def test_a_download_that_is_not_the_file(address, tmp_path, monkeypatch, how, words):
    monkeypatch.setattr(Server, "how", how)
    folder = tmp_path / "weights"
    with pytest.raises(InputError, match=words) as error:
        load_teacher("tiny", folder=folder)
    assert address in str(error.value) and "\n" not in str(error.value)
    assert list(folder.iterdir()) == []


def test_a_download_that_is_the_file_gets_its_name(address, tmp_path):
    with pytest.raises(InputError, match=r"tiny.pth is no checkpoint of plain tensors"):  # arrived, named, and read
        load_teacher("tiny", folder=tmp_path / "weights")
    assert (tmp_path / "weights" / "tiny.pth").read_bytes() == CONTENT


# Names that would be paths (lexical ones, and tokens: tests/data/test_nuscenes.py)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a/..", "..", ".", "", "a\0b", "a\nb", "\x1b[2J"])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(InputError, match="leads outside the data set"):
        inside(tmp_path / "root", name)


def test_links_of_a_user_are_followed(world, tmp_path):
    """The root is a link, its folders are, and a file may link to another inside."""
    (tmp_path / "disk").mkdir()
    for folder in ("samples", "lidarseg"):
        (world / folder).rename(tmp_path / "disk" / folder)
        (world / folder).symlink_to(tmp_path / "disk" / folder)
    (tmp_path / "linked").symlink_to(world)
    image = tmp_path / "disk/samples/scene-0103-10-CAM_BACK.png"
    image.rename(image.with_name("blob"))
    image.symlink_to("blob")
    frame = NuScenes(tmp_path / "linked", "all").read(0, EVERYTHING)
    assert len(frame.cameras) == 6 and frame.labels is not None
    assert len(NuScenes(tmp_path / "linked", "all").image_files()) == 6


@pytest.mark.parametrize("kind", ["a file", "a folder"])
@pytest.mark.parametrize("victim", ["samples/scene-0103-10-LIDAR_TOP.bin", "samples/scene-0103-10-CAM_BACK.png"])
def test_links_out_of_the_data_set(world, tmp_path, kind, victim):
    """As an archive of a data set could bring along: the file would read well."""
    (tmp_path / "secret").mkdir()
    secret = (world / victim).rename(tmp_path / "secret" / Path(victim).name)
    if kind == "a file":
        (world / victim).symlink_to(secret)
    else:
        (world / "samples/deep").symlink_to(secret.parent)
        tables = make_tables({"scene-0103": [10]})
        for row in tables["sample_data"]:
            if row["filename"] == victim:
                row["filename"] = f"samples/deep/{secret.name}"
        write_tables(world, tables)
    reader = NuScenes(world, "all")
    with pytest.raises(InputError, match=f"name the file '.*{secret.name}', which leads outside the data set"):
        reader.read(0, EVERYTHING)
    if victim.endswith("png"):
        with pytest.raises(InputError, match="leads outside"):
            reader.image_files()


@pytest.mark.parametrize("name", ["samples/circle", "samples/circle/x", "samples/" + "x" * 300])
def test_names_that_are_no_files(world, name):
    (world / "samples/circle").symlink_to("circle")
    tables = make_tables({"scene-0103": [10]})
    tables["sample_data"][0]["filename"] = name
    write_tables(world, tables)
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        NuScenes(world, "all").read(0, EVERYTHING)


def test_a_path_in_a_poisoned_index(world, tmp_path):
    cache = tmp_path / "index.npz"
    poison(world, cache, path=np.array([[b"../../secret"] * 7]))
    with pytest.raises(InputError, match="name the file '../../secret', which leads outside the data set"):
        NuScenes(world, "all", index_cache=cache).read(0, EVERYTHING)


def test_names_from_tables_stay_inside_what_is_written(world, tmp_path):
    tables = make_tables({"scene-0103": [10]})
    tables["scene"][0]["name"] = "../../escaped"
    write_tables(world, tables)
    (world / "v1.0-mini/splits.json").write_text('{"mine": ["../../escaped"], "../../split": ["../../escaped"]}')
    before = set(tmp_path.rglob("*"))
    reader = choose_subset(NuScenes(world, "mine", index_cache=tmp_path / "out/index.npz"), 100, "scenes")
    write_subset(tmp_path / "out/subset.txt", reader, "scene ../../escaped")
    with pytest.raises(InputError, match="the split '../../split' cannot name a folder"):
        NuScenesSubmission(tmp_path / "out/submission", reader, "../../split")
    NuScenesSubmission(tmp_path / "out/submission", reader, "mine").write(reader.ids[0], np.ones(7, np.uint8))
    written = set(tmp_path.rglob("*")) - before
    assert written and all(path.is_relative_to(tmp_path / "out") for path in written)


def test_kitti_takes_no_name_but_six_digits(tmp_path):
    folder = tmp_path / "sequences/08"
    (folder / "velodyne").mkdir(parents=True)
    for name in ("000000.bin", "..bin", "0000001.bin", "٠٠٠٠٠١.bin", "000002.bin.bin", "-00001.bin"):
        (folder / "velodyne" / name).touch()
    (tmp_path / "sequences/99/velodyne").mkdir(parents=True)
    (tmp_path / "sequences/99/velodyne/000000.bin").touch()
    row = "1 0 0 0 0 1 0 0 0 0 1 0"
    (folder / "calib.txt").write_text(f"P2: {row}\nTr: {row}\n")
    assert SemanticKitti(tmp_path, "all").ids == ["08_000000"]


def test_a_list_of_frames_is_compared_never_opened(world):
    Path("subset.txt").write_text("../../../etc/passwd\n")
    with pytest.raises(InputError, match="the first is `../../../etc/passwd`"):
        choose_subset(NuScenes(world, "all"), 100, "subset.txt")


def test_names_never_speak_to_the_terminal(refused):
    """Names of others come out escaped, and cut: a recipe could retitle the terminal, or fill it."""
    torch.save({"\x1b]0;owned\x07\n" * 10_000: torch.zeros(1)}, "w.pth")
    sentence = refused("convert", "--source", "w.pth", "--target", "x.pt")
    assert sentence.isprintable() and len(sentence) < 500
    for words in (["pretrain", "--dataset", "\x1b[2J" * 99], ["show", "--split", "\x1b[2J" * 999]):
        sentence = refused(*words)
        assert sentence.isprintable() and len(sentence) < 500


# YAML and JSON


LEVELS = [
    f"&{name} [{', '.join([f'*{before}'] * 6)}]" for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
]
LAUGHS = f"crop: [&a [lol, lol, lol, lol, lol, lol], {', '.join(LEVELS)}]\n"  # 6^13 times lol


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/object/new:pathlib.Path [owned]",
        "!!python/name:os.system",
        "[" * 2000,
        "9" * 5000,
        "2024-13-01",
        "!!int x",
        "\0",
    ],
    ids=lambda value: value[:12],
)
def test_yaml_that_is_more_than_data(refused, value):
    Path("hostile.yaml").write_text(f"seed: {value}\n")
    assert "hostile.yaml is no valid YAML" in refused("pretrain", "hostile.yaml")
    assert "`seed` cannot be" in refused("pretrain", "--seed", value)
    assert not Path("owned").exists() and not Path("output").exists()


def test_a_few_lines_of_yaml_that_stand_for_gigabytes(refused):
    Path("laughs.yaml").write_text(LAUGHS)
    assert "laughs.yaml: `crop` cannot be [[" in refused("pretrain", "laughs.yaml")


@pytest.mark.parametrize("content", ["[" * 100_000, f'[{{"token": {"9" * 5000}}}]'], ids=["deep", "digits"])
@pytest.mark.parametrize("table", ["scene", "sample_data"])
def test_json_that_is_too_much(world, table, content):
    (world / f"v1.0-mini/{table}.json").write_text(content)
    with pytest.raises(InputError, match=f"{table}.json is no JSON") as error:
        NuScenes(world, "all")
    assert "\n" not in str(error.value)


def test_a_number_beyond_all_floats(world):
    tables = make_tables({"scene-0103": [10]})
    for rows, key in (("calibrated_sensor", "translation"), ("ego_pose", "translation")):
        tables[rows][0] = tables[rows][0] | {key: [10**400, 0, 0]}
    write_tables(world, tables)
    with pytest.raises(InputError, match="do not fit together"):
        NuScenes(world, "all")


# Images, and headers that promise too much


def png(rows: int, columns: int) -> bytes:
    """A PNG whose header promises so many pixels and whose content is a few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.filterwarnings("ignore")  # Pillow's, from half its limit on
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb(monkeypatch, limit, side):
    """Also where a library has lifted Pillow's own limit, as some do when they are imported."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    Path("bomb.png").write_bytes(png(side, side))
    with pytest.raises(InputError, match=f"cannot decode the image bomb.png .*({side} x {side}|exceeds limit)"):
        read_image("bomb.png")
    with pytest.raises(InputError, match="cannot decode the superpixel map bomb.png .*(promises|exceeds limit)"):
        load_map(Path("bomb.png"), (side, side), "image")


def test_an_image_that_is_a_program(tmp_path, monkeypatch):
    """EPS is PostScript, which Pillow would have Ghostscript run, whatever the file is called."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\n")
    ghostscript.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(ghostscript))
    for name in ("image.jpg", "map.png"):
        Path(name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError), Image.open("image.jpg") as image:
        image.load()
    Path("owned").unlink()  # the attack works, where Pillow is left alone
    with pytest.raises(InputError, match="cannot decode the image image.jpg"):
        read_image("image.jpg")
    with pytest.raises(InputError, match="cannot decode the superpixel map map.png"):
        load_map(Path("map.png"), (9, 9), "image")
    assert not Path("owned").exists()


@pytest.mark.parametrize("read", [lambda file: read_points(file, 4, ReadOptions()), read_text], ids=["points", "text"])
def test_a_file_larger_than_any_memory(read):
    with open("giant.bin", "wb") as file:
        file.truncate(16 * 10**12)  # sparse: it takes no space
    with pytest.raises(InputError, match=r"giant.bin does not fit into memory \(16,000 GB\)"):
        read("giant.bin")


def test_an_index_that_promises_too_many_rows(world, tmp_path):
    cache, header = tmp_path / "index.npz", io.BytesIO()
    NuScenes(world, "all", index_cache=cache)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(cache) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(cache, "w") as new:
        for name, content in (members | {"mount.npy": header.getvalue()}).items():
            new.writestr(name, content)
    assert len(NuScenes(world, "all", index_cache=cache).read(0, EVERYTHING).points) == 7  # made again
