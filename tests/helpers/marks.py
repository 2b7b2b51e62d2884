"""Marks that several test files share."""

import pytest

from minicore.backends.cuda import availability as gpu

NO_GPU = gpu.trouble("float32") or ""
ON_GPU = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
