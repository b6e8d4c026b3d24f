"""
Settings in nanoGPT's manner: defaults <- config files <- --key=value flags, typed and checked.

    python train.py config/quickstart.py --batch_size=8 --use_bio_mlp=False

A dataclass holds the keys with their types and defaults; the comment behind a field is its help text, in which {NAMES}
stands for a tuple of that name in the dataclass's module. A config file is plain Python assignments. It is executed, so
run only files that you have read.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import os
import re
import shlex
import sys
import textwrap
import tokenize
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from wiggle.errors import UserError
from wiggle.files import read_text

T = typing.TypeVar("T")

# Keys whose values name files, folders or what lies in them: '~' stands for the home folder, and '' is refused.
PATHS = {
    "out_dir",
    "data_dir",
    "include_path",
    "file",
    "dataset",
    "init_from",
    "mlp",
    "neuron",
    "before",
    "to",
    "corpus",
    "input",
    "name",
}


def read_settings(
    cls: type[T],
    argv: Sequence[str],
    description: str = "",
    positional: str | None = None,
    preset: Mapping[str, typing.Any] | None = None,
) -> T:
    """
    Build the dataclass `cls` from command-line arguments.

    argv: each a config file, `--key=value`, `--key value`, or a bare `--key` for a bool.
    description: what --help prints above the keys.
    positional: the field that bare words fill; None means that they are config files.
    preset: values by key that a config file finds set already, and may change.
    Files come first and flags last, each in the order given. Raises UserError for whatever is wrong with them.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text(cls, description, takes_files=positional is None))
        sys.exit(0)
    kinds = typing.get_type_hints(cls)
    words, flags = _split(argv, kinds)
    values = dict(preset or {})
    for word in words:
        if positional is None:
            _read_file(cls, kinds, word, values)
        elif positional in values:
            raise UserError(f"unexpected argument {word!r}: {positional} is {values[positional]!r} already")
        else:
            _assign(cls, values, positional, _check(kinds, positional, word, "argument"))
    for key, text in flags:
        _known(kinds, key, "command line", "--help lists the keys")
        _assign(cls, values, key, _parse(kinds, key, text))
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(_shown(error, str)) from None


# --- help ---


def help_text(cls: type, description: str = "", takes_files: bool = True) -> str:
    """The description, then every key of `cls` with its default, the comment behind it and the values it may take."""
    ways = "--key=value, or key = value in a config file" if takes_files else "--key=value"
    lines = [inspect.cleandoc(description), "", f"keys ({ways}):"]
    kinds, seen, printed = typing.get_type_hints(cls), set(), ""
    for owner in filter(dataclasses.is_dataclass, cls.__mro__):
        for heading, key, default, reason in _documented_fields(owner):
            if key in seen:  # a subclass gave it another default
                continue
            seen.add(key)
            if heading != printed:
                lines += ["", heading]
                printed = heading
            options = _options(kinds[key])
            choices = "" if all(isinstance(o, type) for o in options) else f" [{_expected(options)}]"
            lines.append(f"  {key + ' = ' + default:<38} {_with_names(owner, reason)}{choices}")
    return "\n".join(lines)


def _with_names(owner: type, comment: str) -> str:
    """A comment in which {NAMES} is replaced by the words of that tuple in the owner's module."""
    module = sys.modules[owner.__module__]
    return re.sub(r"{(\w+)}", lambda match: ", ".join(getattr(module, match[1])), comment)


def _documented_fields(owner: type) -> Iterator[tuple[str, str, str, str]]:
    """For each field in the source of a dataclass: (the comment that heads its group, name, default, its comment)."""
    source = textwrap.dedent(inspect.getsource(owner))
    heading, behind, alone = "", {}, {}  # comments behind code and on lines of their own, by the line's number
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = alone if token.line.lstrip().startswith("#") else behind
            kind[token.start[0]] = token.string.lstrip("# ")
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            heading = alone.get(node.lineno - 1, heading)
            default = ast.get_source_segment(source, node.value)
            yield heading, node.target.id, default, behind.get(node.value.end_lineno, "")


# --- the command line ---


def _split(argv, kinds):
    """argv -> (bare words, [(key, text or None)])."""
    words, flags, i = [], [], 0
    while i < len(argv):
        arg, i = argv[i], i + 1
        if not arg.startswith("--"):
            words.append(arg)
        elif "=" in arg:
            flags.append(tuple(arg[2:].split("=", 1)))
        else:
            key, is_bool = arg[2:], kinds.get(arg[2:]) is bool
            takes_next = i < len(argv) and not argv[i].startswith("--") and key in kinds
            if takes_next and (not is_bool or argv[i].lower() in ("true", "false")):
                flags.append((key, argv[i]))
                i += 1
            else:
                flags.append((key, "True" if is_bool else None))
    return words, flags


def _parse(kinds, key, text):
    """The text of a flag -> a value of the type of field `key`."""
    options = _options(kinds[key])
    if text is None:
        raise UserError(f"--{key} needs a value, as --{key}=VALUE (expected {_expected(options)})")
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if type(None) in options and text == "None":
        return None
    if str in options or text in options:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = text
    return _check(kinds, key, value, "command line")


# --- config files ---


class _Recorder(dict):
    """A config file's globals, which remember what the file assigned, in order."""

    def __init__(self, *args):
        super().__init__(*args)
        self.assigned = {}

    def __setitem__(self, key, value):
        self.assigned.pop(key, None)  # a key that is assigned again moves to the end: the last assignment wins
        self.assigned[key] = value
        super().__setitem__(key, value)


def _read_file(cls, kinds, word, values):
    """Execute the config file that a bare word of the command line names, and put what it assigns into `values`."""
    path = as_path("config file", word)
    text = _config_text(path, kinds)
    names = _Recorder({f.name: f.default for f in dataclasses.fields(cls)} | values)
    names.update(__file__=os.path.abspath(path), __name__="__main__")  # as where Python runs the file by itself
    try:
        exec(compile(text, path, "exec"), names)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, and whatever else a file may raise
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        place = f"{path}, line {line}" if line else path
        what = _shown(getattr(error, "msg", None) or error, str)
        raise UserError(f"config file {place}: {type(error).__name__}: {what}") from None
    for key, value in names.assigned.items():
        helper = str(key).startswith("_") or isinstance(value, (types.ModuleType, types.FunctionType, type))
        if helper and key not in kinds:
            continue
        _known(kinds, key, path, "--help lists the keys, and names of a config file's own begin with _")
        _assign(cls, values, key, _check(kinds, key, value, path))


def _config_text(path, kinds):
    """A config file's text. Raises UserError where there is none, and says what to do with what is no config file."""
    shown = _shown(path)
    if os.path.isdir(path):
        key = "out_dir" if "out_dir" in kinds else "data_dir"
        raise UserError(f"{shown} is a folder, no config file: a run's folder is given as --{key}={shlex.quote(path)}")
    if not os.path.exists(path):
        raise UserError(f"config file {shown} does not exist (flags are written --key=value)")
    if Path(path).suffix in (".pt", ".pth", ".safetensors"):
        key = "init_from" if "init_from" in kinds else "out_dir"
        raise UserError(f"{shown} is a checkpoint, no config file: give it as --{key}={shlex.quote(path)}")
    return read_text(path)


# --- values ---


def _assign(cls, values, key, value):
    """Set values[key]; a historic spelling becomes today's on the spot, so that the last assignment wins."""
    if key in PATHS and isinstance(value, str):
        value = as_path(key, value)
    if hasattr(cls, "modern"):
        key, value = cls.modern(key, value)
    values[key] = value


def as_path(key: str, text: str) -> str:
    """The value of a key that names a file or folder, '~' replaced by the home folder. Raises UserError for ''."""
    if not text.strip() or "\0" in text:
        raise UserError(f"{key} = {_shown(text)} names nothing: give a name or a path, or leave {key} out")
    try:
        return os.path.expanduser(text)
    except ValueError:  # the name behind '~' is none that a user can have
        return text


def _known(kinds, key, where, otherwise):
    """Raise UserError unless `key` is one of the keys; otherwise: the hint where none is like it."""
    if key not in kinds:
        near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else otherwise
        raise UserError(f"{where}: unknown key {_shown(key)}; {hint}")


def _shown(value: object, spell: Callable[[typing.Any], str] = repr) -> str:
    """A value for an error message: one line of at most 300 characters, whatever the value does."""
    try:
        text = spell(value)
    except Exception:  # an int of 5,000 digits, or an object of a config file's own class
        text = f"a {type(value).__name__} that cannot be shown"
    return " ".join(text.split())[:300]


def _options(kind):
    """int | Literal['auto'] -> [int, 'auto']: the types and constants that a field takes."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [o for part in typing.get_args(kind) for o in _options(part)]
    return list(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else [kind]


def _expected(options):
    """[int, 'auto'] -> "an int or 'auto'"."""
    names = {int: "an int", float: "a float", bool: "True or False", str: "a str", type(None): "None"}
    return " or ".join(names[o] if isinstance(o, type) else repr(o) for o in options)


def _check(kinds, key, value, where):
    """Return `value` as the type of field `key`, or raise. A whole number is a fine float; True is no int."""
    options = _options(kinds[key])
    if key in PATHS and isinstance(value, Path):
        value = str(value)
    for option in options:
        if not isinstance(option, type):
            if type(value) is type(option) and value == option:
                return value
        elif type(value) is option and (option is not int or abs(value) < 2**63):
            return value
    if float in options and type(value) is int and abs(value) < 2**1000:
        return float(value)
    got = "one of over 18 digits" if type(value) is int and int in options else type(value).__name__
    raise UserError(f"{where}: {key} = {_shown(value)}: expected {_expected(options)}, got {got}")
