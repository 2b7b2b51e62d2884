"""What several test files share."""

from pathlib import Path

import pytest
from hypothesis import settings

from minicore.errors import InputError

# Examples are not timed: the first one of a test may compile kernels or read a model. They are the same in
# every run, so that a check says the same twice; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("minicore", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("minicore")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Path of SmolLM2-135M-Instruct's GGUF file, fetched if it is not cached; skips where it cannot be."""
    from minicore.checkpoint.names import pull

    try:
        return Path(pull("smollm2-135m"))
    except InputError as error:
        pytest.skip(f"SmolLM2 is out of reach: {error}")
