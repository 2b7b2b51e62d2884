"""Chat templates: which one a directory has, and rendering it as Transformers does.

Templates are Jinja code that comes with a checkpoint. They run in Jinja's sandbox, in the environment that
Transformers gives them (``utils/chat_template_utils.py`` there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minicore.checkpoint.settings import read_bytes
from minicore.errors import InputError

if TYPE_CHECKING:
    import jinja2

ChatTemplate = str | dict[str, str] | None

_MAX_RENDERED = 1 << 24  # most characters that a template may produce; conversations have far fewer


def read_chat_template(directory: Path, config: Mapping[str, Any]) -> ChatTemplate:
    """Return a directory's chat template; if it has several and none is the default, all by name.

    ``chat_template.jinja`` and ``additional_chat_templates/*.jinja`` come before the ``chat_template`` of
    tokenizer_config.json (``config``), which is one template, a list with names or an object.
    """
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    named: dict[str, Any] = {name: _read_text(path) for name, path in files.items() if path.is_file()}
    given = config.get("chat_template")
    if not named and isinstance(given, list):
        entries = [entry for entry in given if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
    elif not named:
        named = dict(given) if isinstance(given, dict) else {"default": given}
    templates = {name: text for name, text in named.items() if isinstance(text, str)}
    return templates.get("default") or templates or None


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error}), expected text in UTF-8") from error


def with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without keys that are None, and its reasoning under the names that templates read.

    Examples
    --------
    >>> with_reasoning({"role": "assistant", "content": "4", "thinking": "2 + 2", "name": None})
    {'thinking': '2 + 2', 'role': 'assistant', 'content': '4', 'reasoning_content': '2 + 2'}
    """
    given = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((given[name] for name in names if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return what a template makes of the values; whatever it raises goes to the caller.

    Examples
    --------
    >>> render("{% for m in messages %}{{ m.content }}.{% endfor %}", {"messages": [{"content": "Hi"}]})
    'Hi.'
    """
    import jinja2

    pieces, length = [], 0
    for piece in _compile(template).generate(**values):
        pieces.append(piece)
        length += len(piece)
        if length > _MAX_RENDERED:
            raise jinja2.TemplateError(f"it produces more than {_MAX_RENDERED} characters")
    return "".join(pieces)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant wrote, for training. It renders as its content."""

        tags = {"generation"}

        def parse(self, parser: Any) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> str:
            return str(caller())

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # Jinja's own filter escapes <, > and & for HTML
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
