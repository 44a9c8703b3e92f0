"""The shape of the package: which way imports point, and what no file may contain.

Every rule reads source text only, so a rule can be shown to bite: `test_rules_bite` feeds each one an offender.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unidiffuser"

# Top to bottom, as in the README's tree: a file may import from its own line and from the lines below it.
LAYERS = """
    __main__
    __init__ cli
    recommend server
    presets
    train distill evaluate text_to_3d
    evaluation
    stages
    optimise
    training
    request
    pipeline recipe sheet
    answers
    encode cluster
    codecs
    checkpoints
    datasets
    distances metrics
    modalities marking
    captions
    pretrained
    chains agreement likelihood
    sampling
    solvers
    teach
    guidance
    critic
    losses instruct
    lora
    mixture reuse radiance
    denoiser
    networks
    divergences
    offload
    int8
    process
    timesteps
    joint
    strict_json
"""
RANK = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split()}
FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc", "common"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
WEIGHTS_ONLY = "checkpoints.tables"
"""The one file that reads pickles, which others wrote, with torch's reader of tensors alone."""

Sources = dict[str, str]  # dotted module name inside the package ("" for its __init__) -> source text


def read_sources() -> Sources:
    """The text of every module of the package."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix("__init__").rstrip("."): path.read_text() for parts, path in files.items()}


def top_level(module: str) -> str:
    return module.partition(".")[0] or "__init__"


def imported_modules(module: str, sources: Sources) -> Iterator[str]:
    """The package's own modules that one of them imports, at any depth of its code and in any spelling."""
    is_folder = module == "" or any(name.startswith(module + ".") for name in sources)
    full_name = ["unidiffuser", *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            ancestors = full_name[: len(full_name) - node.level + is_folder] if node.level else []
            base = ".".join([*ancestors, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            package, _, inner = target.partition(".")
            if package != "unidiffuser":
                continue
            # `from a.b import c` names the module a.b.c or something inside a.b
            yield next((name for name in (inner, inner.rpartition(".")[0]) if name in sources), inner)


def import_complaints(sources: Sources) -> Iterator[str]:
    """Modules outside the list, arrows that point up, cycles."""
    graph = {module: set(imported_modules(module, sources)) for module in sources}
    for module, targets in graph.items():
        if top_level(module) not in RANK:
            yield f"unknown module {module}: give it a line in LAYERS and in the README's tree"
            continue
        for target in sorted(targets):
            if RANK.get(top_level(target), 0) < RANK[top_level(module)]:
                yield f"{module} imports {target or 'the package itself'}, which is above it"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"import cycle: {' -> '.join(error.args[1])}"


def forbidden_words(name: str) -> set[str]:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return FORBIDDEN_WORDS & {word.lower() for word in words}


def node_complaint(node: ast.AST) -> str | None:
    """What is wrong with one piece of code, if anything."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) if forbidden_words(
            name
        ):
            return f"the name {name} says nothing: name the thing it is"
        case ast.Call(func=ast.Name(id="hasattr" | "eval" | "exec" as name)):
            return f"{name}()"
        case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
            return "torch.load reads pickles: use safetensors"
        case ast.ImportFrom(module="torch", names=names) if any(alias.name == "load" for alias in names):
            return "torch.load reads pickles: use safetensors"
        case ast.keyword(arg="allow_pickle", value=value) if not (
            isinstance(value, ast.Constant) and value.value is False
        ):
            return "allow_pickle"
        case ast.Import(names=names) if any(alias.name.partition(".")[0] in UNSAFE_IMPORTS for alias in names):
            return "import of a module that runs what it reads"
        case ast.ImportFrom(module=str(name)) if name.partition(".")[0] in UNSAFE_IMPORTS:
            return "import of a module that runs what it reads"
        case ast.Global():
            return "global: module state"
        case ast.Compare(left=ast.Name(id="mode" | "task")):
            return "a branch on a mode: set the roles"
    return None


def content_complaints(sources: Sources) -> Iterator[str]:
    """Names and calls that no file may contain."""
    for module, text in sources.items():
        if forbidden_words(module):
            yield f"the module name {module} says nothing: name the thing it is"
        for node in ast.walk(ast.parse(text)):
            complaint = node_complaint(node)
            if complaint and not (module == WEIGHTS_ONLY and ("pickle" in complaint or "runs what" in complaint)):
                yield f"{module}:{getattr(node, 'lineno', '?')}: {complaint}"


def test_imports_point_down() -> None:
    assert list(import_complaints(read_sources())) == []


def test_no_forbidden_content() -> None:
    assert list(content_complaints(read_sources())) == []


def test_pickles_are_read_as_weights_only() -> None:
    tree = ast.parse(read_sources()[WEIGHTS_ONLY])
    calls = [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and "load(" in ast.unparse(node)
    ]
    calls = [call for call in calls if call.startswith("torch.load(")]
    assert calls and all("weights_only=True" in call for call in calls)
    assert "pickle.load" not in ast.unparse(tree)


def test_the_index_names_every_page() -> None:
    docs = ROOT / "docs"
    index = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (docs / "README.md").read_text(encoding="utf-8")))
    assert index == {page.name for page in docs.glob("*.md")} - {"README.md"}


@pytest.mark.parametrize(
    "module, text",
    [
        ("solvers", "from unidiffuser import sampling"),
        ("solvers", "from .sampling import sample"),
        ("joint", "def f():\n    import unidiffuser.process"),
        ("networks.mlp", "from ..guidance import guided"),
        ("process", "from unidiffuser import __version__"),
        ("colours", ""),
        ("networks.uvit", "from unidiffuser.networks.mlp import MLP\nfrom . import uvit"),
        ("networks.helpers", ""),
        ("joint", "class JointManager: ..."),
        ("joint", "def misc_noise(): ..."),
        ("joint", "hasattr(x, 'y')"),
        ("joint", "eval('1')"),
        ("joint", "torch.load('a.pt')"),
        ("joint", "from torch import load"),
        ("joint", "from pickle import loads"),
        ("joint", "import dill.source"),
        ("joint", "np.load('a.npy', allow_pickle=True)"),
        ("sampling", "if mode == 't2i': pass"),
        ("sampling", "def f():\n    global state"),
    ],
)
def test_rules_bite(module: str, text: str) -> None:
    package = {"": "", "sampling": "", "guidance": "", "process": "", "networks": "", "networks.mlp": ""} | {
        module: text
    }
    assert [*import_complaints(package), *content_complaints(package)] != []


def test_rules_spare_good_code() -> None:
    package = {
        "": "from .cli import main",
        "cli": "def main():\n    from unidiffuser import joint",
        "networks": "",
        "networks.uvit": "from ..joint import Joint\nfrom .mlp import MLP\nmodel.eval()",
        "networks.mlp": "import unidiffuser.joint",
        "joint": "",
    }
    assert [*import_complaints(package), *content_complaints(package)] == []
