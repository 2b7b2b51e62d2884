"""Marks that several test files share."""

import pytest

from minicore.decode import gpu

NO_GPU = gpu.trouble("float32") or ""
ON_GPU = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]
