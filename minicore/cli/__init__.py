"""The command line: ``minicore COMMAND``, one module per command.

Results go to standard output, everything else to standard error. Exit codes: 0 for success; 1 if
`bench` or `check` finds a wrong result; 2 for bad input, reported in one sentence; 130 after Ctrl-C; 141
if the reader of the output went away. A command's module is imported only when that command runs, so
that ``minicore --help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minicore.cli.decoding import JSON_KEYS
from minicore.cli.options import DEFAULT_MODEL
from minicore.cli.parser import COMMANDS, make_parser
from minicore.cli.terminal import discard_output, fail, note, replace_unencodable
from minicore.errors import InputError

__all__ = ["COMMANDS", "DEFAULT_MODEL", "JSON_KEYS", "main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``minicore`` with these arguments (None: those of the process) and return its exit code.

    Examples
    --------
    >>> main(["pull", "no-such-model"])  # lists the known models on stderr
    2
    """
    replace_unencodable()
    try:
        try:
            args = make_parser().parse_args(argv)
            return args.run(args)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # while a reader that went away can still be handled
    except InputError as error:
        return fail(str(error))
    except BrokenPipeError:
        discard_output()
        return 141
    except OSError as error:
        discard_output()
        return fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        note("interrupted")
        return 130
