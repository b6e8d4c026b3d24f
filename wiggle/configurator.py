"""
Settings in nanoGPT's manner: defaults <- config file(s) <- --key=value flags, typed and checked.

    python train.py config/quickstart.py --batch_size=8 --use_bio_mlp=False

The defaults, the types and the help texts are those of one dataclass; the comment behind a field is its help.
A config file is plain Python assignments. It is executed, so run only files that you have read.
"""

import ast
import dataclasses
import difflib
import inspect
import os
import re
import sys
import traceback
import types
import typing
from pathlib import Path

from wiggle.errors import UserError


def read_settings(cls, argv, description="", positional=None, preset=()):
    """
    Build the dataclass `cls` from command-line arguments.

    description: what --help prints above the keys.
    argv: list of str, each a config file, `--key=value`, `--key value`, or a bare `--key` for a bool.
    positional: the field that bare words fill; None means that they are config files.
    preset: values by key that a config file finds set already, and may change.
    Files come first and flags last, each in the order given. Raises UserError for whatever is wrong with them.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text(cls, description))
        sys.exit(0)
    kinds = typing.get_type_hints(cls)
    words, flags = _split(argv, kinds)
    values = dict(preset)
    for word in words:
        if positional is None:
            _read_file(cls, kinds, word, values)
        elif positional in values:
            raise UserError(f"unexpected argument {word!r}: {positional} is {values[positional]!r} already")
        else:
            _assign(cls, values, positional, _check(kinds, positional, word, "argument"))
    for key, text in flags:
        _known(kinds, key, "command line")
        _assign(cls, values, key, _parse(kinds, key, text))
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(_shown(error, str)) from None


def help_text(cls, description=""):
    """Every key of `cls` with its default and the comment behind it, below the description."""
    lines = [
        inspect.cleandoc(description),
        "",
        "keys (--key=value, or key = value in a config file):",
    ]
    field_line = re.compile(r"^    (\w+): [^#=]+= ([^#]*?)\s*# (.*)$")
    for owner in [c for c in cls.__mro__ if dataclasses.is_dataclass(c)]:
        for line in inspect.getsource(owner).splitlines():
            if match := field_line.match(line):
                key, default, reason = match.groups()
                if owner is cls or key not in cls.__dict__:
                    lines.append(f"  {key + ' = ' + default:<38} {reason}")
            elif line.startswith("    # "):
                lines += ["", line.strip()[2:]]
    return "\n".join(lines)


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


class _Recorder(dict):
    """A config file's globals, which remember what the file assigned, in order."""

    def __init__(self, *args):
        super().__init__(*args)
        self.assigned = {}

    def __setitem__(self, key, value):
        self.assigned.pop(key, None)  # a key that is assigned again moves to the end: the last assignment wins
        self.assigned[key] = value
        super().__setitem__(key, value)


def _read_file(cls, kinds, path, values):
    if not os.path.isfile(path):
        raise UserError(f"config file {_shown(path)} does not exist (flags are written --key=value)")
    try:
        code = compile(Path(path).read_text(encoding="utf-8"), path, "exec")
        names = _Recorder({f.name: f.default for f in dataclasses.fields(cls)} | values)
        exec(code, names)
    except UnicodeDecodeError:
        raise UserError(f"config file {path} is not text in UTF-8") from None
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
        _known(kinds, key, path)
        _assign(cls, values, key, _check(kinds, key, value, path))


def _assign(cls, values, key, value):
    """Set values[key]; a historic spelling becomes today's on the spot, so that the last assignment wins."""
    if hasattr(cls, "modern"):
        key, value = cls.modern(key, value)
    values[key] = value


def _known(kinds, key, where):
    if key not in kinds:
        near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "--help lists the keys"
        raise UserError(f"{where}: unknown key {_shown(key)}; {hint}")


def _shown(value, spell=repr):
    """A value for an error message: one line of at most 200 characters, whatever the value does."""
    try:
        text = spell(value)
    except Exception:  # an int of 5,000 digits, or an object of a config file's own class
        text = f"a {type(value).__name__} that cannot be shown"
    return " ".join(text.split())[:200]


def _options(kind):
    """int | Literal['auto'] -> [int, 'auto']: the types and constants that a field takes."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [o for part in typing.get_args(kind) for o in _options(part)]
    return list(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else [kind]


def _expected(options):
    names = {int: "an int", float: "a float", bool: "True or False", str: "a str", type(None): "None"}
    return " or ".join(names[o] if isinstance(o, type) else repr(o) for o in options)


def _check(kinds, key, value, where):
    """Return `value` as the type of field `key`, or raise. A whole number is a fine float; True is no int."""
    options = _options(kinds[key])
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
