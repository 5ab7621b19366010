"""What happens to runs that are killed, stopped, crowded or starved: as processes of their own, from outside."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.stages.conftest import SMALL

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
PRETRAIN = [
    *("pretrain", "--root=world", *SMALL, "--architecture=res16unet14c", "--epochs=12", "--validate_every=6"),
    *("--checkpoint_minutes=0", "--workers=1", "--gather_negatives"),
]


def begin(*words: str, launcher: list[str] = ALONE, **options) -> subprocess.Popen:
    """`python run.py ...` as a process group of its own; what it says goes to said.txt."""
    command = [*launcher, str(REPOSITORY / "run.py"), *words]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    with open("said.txt", "w") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env=surroundings, start_new_session=True, **options)


def end(process: subprocess.Popen, seconds: float = 240) -> tuple[int, str]:
    """(exit code, everything said)."""
    code = process.wait(seconds)
    return code, Path("said.txt").read_text()


def finished(*words: str, **options) -> str:
    code, said = end(begin(*words, **options))
    assert code == 0, said
    return said


def wait_for(what, seconds: float = 60):
    """The first true value of `what()`."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError(Path("said.txt").read_text())


def checkpoints(name: str) -> list[Path]:
    return sorted(Path(f"output/pretrain/{name}/checkpoints").glob("step-*.pt"))


def losses(name: str) -> list[float]:
    rows = map(json.loads, Path(f"output/pretrain/{name}/metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows for key in ("loss", "val_loss") if key in row]


def weights(name: str) -> dict[str, torch.Tensor]:
    content = torch.load(f"output/pretrain/{name}/model.pt", weights_only=True)
    heads = {f"{part}.{key}": value for part in ("point_head", "image_head") for key, value in content[part][0].items()}
    return content["backbone"] | heads


def assert_same(one: str, other: str) -> None:
    """Two runs have the same losses and parameters, bit for bit."""
    assert losses(one) == losses(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def ranks(launcher: subprocess.Popen) -> list[int]:
    """Process ids of torchrun's children that train (not of their loaders' workers)."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(command):
    """SIGKILL at random moments; with a checkpoint after every step, many fall into the writing of one."""
    finished(*PRETRAIN, "--name=whole")
    moments = random.Random(5)
    for _ in range(4):
        process = begin(*PRETRAIN, "--name=cut", "--resume")
        known = checkpoints("cut")
        wait_for(lambda known=known: checkpoints("cut") != known)
        time.sleep(moments.random() / 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    torn = Path("output/pretrain/cut/checkpoints/.step-000000001-torn.pt")
    torn.write_bytes(b"killed while it was written")
    said = finished(*PRETRAIN, "--name=cut", "--resume")
    assert re.search(r"goes on after step [1-9]\d* of 12", said) and not torn.exists()
    assert_same("whole", "cut")


def test_sigterm_to_the_whole_group_stops_with_its_own_exit_code(command):
    """As a scheduler sends it: the loader's workers leave it to the training process."""
    finished(*PRETRAIN, "--name=whole")
    process = begin(*PRETRAIN, "--name=cut")
    wait_for(lambda: checkpoints("cut"))
    os.killpg(process.pid, signal.SIGTERM)
    code, said = end(process)
    assert code == 75 and "stopped by SIGTERM after step" in said and "Traceback" not in said
    code, said = end(begin(*PRETRAIN, "--name=cut"))
    assert code == 2 and "--resume goes on with it" in said
    finished(*PRETRAIN, "--name=cut", "--resume")
    assert_same("whole", "cut")


def test_a_lost_terminal_costs_nothing(command):
    """What reads the output has gone, and SIGHUP comes: a checkpoint, and its own exit code."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "run.py"), *PRETRAIN, "--name=cut"], stdout=writer, stderr=writer
    )
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    wait_for(lambda: len(checkpoints("cut")) > 1 or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    assert process.wait(240) == 75 and checkpoints("cut")
    finished(*PRETRAIN, "--name=cut", "--resume")
    assert "is finished, nothing is left to do" in finished(*PRETRAIN, "--name=cut", "--resume")


@pytest.mark.parametrize("files", [20, 30, 40])
def test_too_few_files(command, files):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    code, said = end(begin(*PRETRAIN, "--name=few", preexec_fn=limit))
    assert code == 0 or (code == 2 and "too few files at once" in said.splitlines()[-1]), said


def test_two_processes_train_as_one(command):
    said = finished(*PRETRAIN, "--name=two", launcher=TWO)
    assert "float32 on cpu, 2 processes" in said and said.count("pretrain -> ") == 1
    finished(*PRETRAIN, "--name=one")
    one, two = ([x for x in losses(name)] for name in ("one", "two"))
    assert len(one) == len(two) and one[:2] == pytest.approx(two[:2], rel=1e-5)  # float32 differences grow step by step
    for stage, more in (("linprobe", []), ("fewshot", ["--pct=100"])):
        common = [stage, "--root=world", "--weights=output/pretrain/one/model.pt", "--epochs=1", "--batch=2", *more]
        said = finished(*common, "--name=two", launcher=TWO)
        assert "2 processes" in said and Path(f"output/{stage}/two/report.md").exists()
        scores = json.loads(Path(f"output/{stage}/two/scores.json").read_text())
        finished(*common, "--name=one")
        alone = json.loads(Path(f"output/{stage}/one/scores.json").read_text())
        assert [sum(row) for row in scores["details"]["confusion"]] == [
            sum(row) for row in alone["details"]["confusion"]
        ]  # each point once


def test_a_killed_process_ends_the_run_and_a_restart_goes_on(command):
    finished(*PRETRAIN, "--name=whole", launcher=TWO)
    launcher = begin(*PRETRAIN, "--name=cut", launcher=TWO)
    wait_for(lambda: checkpoints("cut"))
    os.kill(ranks(launcher)[1], signal.SIGKILL)
    killed = time.monotonic()
    code, said = end(launcher)
    assert code != 0 and time.monotonic() - killed < 60
    assert "process 0 of 2 ends because another one died" in said
    finished(*PRETRAIN, "--name=cut", "--resume", launcher=TWO)
    assert_same("whole", "cut")

    launcher = begin(*PRETRAIN, "--name=again", "--resume", launcher=[*TWO, "--max-restarts=2"])
    wait_for(lambda: checkpoints("again"))
    os.kill(ranks(launcher)[0], signal.SIGKILL)
    code, said = end(launcher)
    assert code == 0 and "goes on after step" in said
    assert_same("whole", "again")


def test_two_runs_in_one_folder(command):
    process = begin(*PRETRAIN, "--name=mine")
    wait_for(lambda: Path("output/pretrain/mine/config.yaml").exists())
    first_said = Path("said.txt").rename("first.txt")
    code, said = end(begin(*PRETRAIN, "--name=mine", "--resume"))
    assert code == 2 and re.search(r"mine is being written by another run \(process \d+ on ", said)
    assert process.wait(240) == 0, first_said.read_text()


def test_a_disk_that_takes_no_checkpoint(command):
    """Files may have 300 kB, less than checkpoints and model.pt: training reaches its end and says what is missing."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, said = end(begin(*PRETRAIN, "--workers=0", "--name=full", preexec_fn=limit))
    assert code == 2 and said.count("a checkpoint cannot be written") == 1 and "step 12/12" in said
    assert (
        said.strip()
        .splitlines()[-1]
        .startswith("run.py pretrain: cannot write output/pretrain/full/model.pt: File too")
    )
    assert not checkpoints("full") and not list(Path("output").rglob(".*"))
    finished(*PRETRAIN, "--name=full", "--resume")


def test_a_loss_that_is_no_number_is_kept_and_looked_at_again(command):
    code, said = end(begin(*PRETRAIN, "--name=nan", "--lr=1e36", "--max_bad_steps=1"))
    assert code == 2 and re.search(r"the loss of step \d+ is (nan|inf), .*\(frames .*bad step number 2", said)
    first, second = sorted(Path("output/pretrain/nan").glob("nonfinite-*.pt"))
    said = finished("pretrain", "--root=world", f"--replay={second}")
    step = int(second.stem[-9:])
    assert f"step {step}, epoch {step + 1}: frames " in said and "the first output that is not finite: " in said
    assert "loss in float32: nan" in said


def test_deterministic_runs_have_the_same_bits(command):
    for name in ("one", "two"):
        finished(*PRETRAIN, f"--name={name}", "--deterministic", "--threads=2", "--epochs=4")
    assert_same("one", "two")
