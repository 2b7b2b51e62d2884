"""``python -m minicore.lm_eval`` runs the command ``lm_eval`` of the harness with the model ``minicore``."""

import importlib.util
import sys
import warnings
from typing import Any

from minicore.errors import InputError


def main() -> int:
    """Run the harness; return 2 after one sentence on stderr if the input is bad."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import minicore.evaluation.lm_eval  # noqa: F401  (registers the model)
    except ImportError as error:
        print(f"minicore: {error.name} is missing: pip install 'minicore-lm[lm-eval]'", file=sys.stderr)
        return 2
    try:
        cli_evaluate()
    except InputError as error:
        print(f"minicore: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def __getattr__(name: str) -> Any:
    """Import from here as before version 0.2."""
    if name.startswith("__"):
        raise AttributeError(name)
    from minicore.evaluation import lm_eval

    warnings.warn("minicore.lm_eval is now minicore.evaluation.lm_eval", DeprecationWarning, stacklevel=2)
    return getattr(lm_eval, name)


if __name__ == "__main__":
    sys.exit(main())
elif importlib.util.find_spec("lm_eval"):  # importing this module registers the model, as before version 0.2
    import minicore.evaluation.lm_eval  # noqa: F401
