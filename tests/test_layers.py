"""
Imports run downwards and in no circle: scripts -> experiment/ -> train.py -> wiggle/ -> model_bio.py -> kernels/.

Every import statement counts, those inside functions too.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {"wiggle", "model_bio", "kernels"}  # what every script may import
MAY_IMPORT = {  # a layer, which is a folder or a script at the top -> the layers that it may import
    "kernels": {"kernels"},
    "model_bio": {"kernels"},
    "wiggle": SHARED,
    "experiment": SHARED | {"experiment", "train"},
    "compare": SHARED | {"experiment", "train"},
    "bench": SHARED | {"train"},
    "studies": SHARED | {"experiment", "studies"},  # scripts that read the reports of compare.py, as it does
    "config": set(),
}
FOLDERS = ("kernels", "wiggle", "experiment", "studies", "config")


class Import(NamedTuple):
    """`module` imports `target`, both dotted names of the project, within `scope`: '' at the top of the file."""

    module: str
    target: str
    scope: str


# nanoGPT's GPT.from_pretrained is a method of the model, and what it calls makes a model.
EXCEPTION = Import("model_bio", "wiggle.huggingface", "GPT.from_pretrained")


def layer(module):
    return module.split(".")[0]


def dotted(path):
    """The name by which a file, relative to the root, is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node, scope=""):
    """-> (an import statement, its scope) for each one below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, scope
        named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        yield from statements(child, f"{scope}.{child.name}".strip(".") if named else scope)


def imported_names(statement, path):
    """The dotted names that a statement of the file `path` may import: modules, or what it takes out of one."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    package = path.parts[: len(path.parts) - statement.level] if statement.level else ()
    base = ".".join((*package, *filter(None, [statement.module])))
    return [f"{base}.{alias.name}" for alias in statement.names]


def project_imports(root):
    """-> each Import of a project module by a project module."""
    files = [*root.glob("*.py"), *(path for folder in FOLDERS for path in root.glob(f"{folder}/**/*.py"))]
    modules = {dotted(path.relative_to(root)) for path in files}
    layers = {layer(module) for module in modules} | {"tests"}
    for file in files:
        path = file.relative_to(root)
        for statement, scope in statements(ast.parse(file.read_text(encoding="utf-8"))):
            for name in imported_names(statement, path):
                if layer(name) in layers:
                    yield Import(dotted(path), name if name in modules else name.rpartition(".")[0] or name, scope)


def upward(imports):
    """Those imports that the layers do not allow."""
    return [i for i in imports if layer(i.target) not in MAY_IMPORT.get(layer(i.module), SHARED) and i != EXCEPTION]


def circle(imports):
    """The modules of one circle of imports, or None."""
    graph = {}
    for i in imports:
        if i != EXCEPTION:
            graph.setdefault(i.module, set()).add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_imports_run_downwards():
    assert upward(project_imports(ROOT)) == []


def test_no_imports_form_a_circle():
    assert circle(project_imports(ROOT)) is None


def test_the_one_exception_is_in_use():
    assert EXCEPTION in project_imports(ROOT)


def test_no_folder_of_code_is_without_a_layer():
    folders = {path.parent.name for path in ROOT.glob("[!.]*/*.py")}
    assert folders - {"tests"} <= set(FOLDERS)


# --- the check itself ---


@pytest.fixture
def project(tmp_path):
    """project({file: text}) -> its imports."""

    def write(files):
        layout = dict.fromkeys(("train.py", "bench.py", "model_bio.py", "wiggle/huggingface.py", "kernels/a.py"), "")
        for name, text in (layout | files).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return list(project_imports(tmp_path))

    return write


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        ("kernels/b.py", "import wiggle.huggingface as h", "wiggle.huggingface"),
        ("kernels/b.py", "from model_bio import GPT", "model_bio"),
        ("model_bio.py", "def f():\n    from wiggle import huggingface", "wiggle.huggingface"),
        ("wiggle/b.py", "try:\n    import train\nexcept ImportError:\n    pass", "train"),
        ("wiggle/b.py", "from ..train import train", "train"),
        ("sample_bio.py", "from train import train", "train"),
        ("train.py", "from tests import conftest", "tests"),
        ("experiment/b.py", "import bench", "bench"),
    ],
)
def test_an_upward_import_is_found(project, file, text, target):
    assert [(i.module, i.target) for i in upward(project({file: text}))] == [(dotted(Path(file)), target)]


def test_a_downward_import_is_allowed(project):
    files = {
        "bench.py": "import train",
        "train.py": "from wiggle.huggingface import f",
        "kernels/b.py": "from . import a",
    }
    imports = project(files)
    assert [i.target for i in imports] == ["train", "wiggle.huggingface", "kernels.a"]
    assert upward(imports) == [] and circle(imports) is None


def test_a_circle_is_found_even_if_a_call_closes_it(project):
    files = {"kernels/a.py": "from kernels.b import f", "kernels/b.py": "def f():\n    from . import a"}
    assert set(circle(project(files))) == {"kernels.a", "kernels.b"}
