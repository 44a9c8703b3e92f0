"""The shop window: what is installed, what is imported, and that the README tells the truth."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import unidiffuser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unidiffuser"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
DISTRIBUTION_OF = {"PIL": "pillow", "prometheus_client": "prometheus-client"}  # import name -> name on PyPI
EXTRA_OF = {"server": "serve"}  # folder whose modules may need an extra -> that extra


def imports_at_load(node: ast.AST) -> Iterator[str]:
    """Top-level names that a module imports when it is itself imported: not inside functions, not for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0]
        yield from imports_at_load(child)


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", line)[0] for line in requirements}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def readme_verbs() -> list[str]:
    return sorted(set(re.findall(r"^(?:\.venv/bin/)?unidiffuser ([a-z0-9-]+)", "\n".join(fenced("sh")), flags=re.M)))


def test_every_module_needs_only_the_required_dependencies() -> None:
    allowed = distributions(PROJECT["dependencies"]) | set(sys.stdlib_module_names) | {"unidiffuser"}
    for path in PACKAGE.rglob("*.py"):
        extra = EXTRA_OF.get(path.relative_to(PACKAGE).parts[0])
        more = distributions(PROJECT["optional-dependencies"][extra]) if extra else set()
        for name in imports_at_load(ast.parse(path.read_text())):
            found = DISTRIBUTION_OF.get(name, name)
            assert found in allowed | more, f"{path.relative_to(ROOT)} imports {name} at load"


def test_every_folder_of_modules_is_packaged() -> None:
    assert all((path.parent / "__init__.py").exists() for path in PACKAGE.rglob("*.py"))


def test_the_version_is_written_once() -> None:
    assert "version" in PROJECT["dynamic"]
    written = [path for path in PACKAGE.rglob("*.py") if f'"{unidiffuser.__version__}"' in path.read_text()]
    assert written == [PACKAGE / "__init__.py"]


def test_constraints_satisfy_the_project() -> None:
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        assert pins[requirement.name] in requirement.specifier


def test_help_does_not_load_torch() -> None:
    code = "import sys; from unidiffuser.cli import main; code = main(['--help'])"
    watched = f"import atexit, sys\natexit.register(lambda: print('torch loaded:', 'torch' in sys.modules))\n{code}"
    assert run_python("-c", watched).stdout.splitlines()[-1:] == ["torch loaded: False"]


def test_python_m_answers() -> None:
    answer = run_python("-m", "unidiffuser", "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: unidiffuser")


def test_the_console_script_leads_to_a_function_without_required_arguments() -> None:
    module, _, function = PROJECT["scripts"]["unidiffuser"].partition(":")
    inspect.signature(getattr(importlib.import_module(module), function)).bind()


def test_readme_python_compiles() -> None:
    assert fenced("python")
    for block in fenced("python"):
        ast.parse(block)
        for name in re.findall(r"from unidiffuser import (\w+)", block):
            assert getattr(unidiffuser, name)


@pytest.mark.parametrize("verb", readme_verbs())
def test_readme_commands_exist(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from unidiffuser.cli import main

    try:
        code: object = main([verb, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None)
    assert f"usage: unidiffuser {verb}" in capsys.readouterr().out


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"^make ([a-z]+)", "\n".join(fenced("sh")), flags=re.M))
    assert {"demo", "test"} <= named <= targets


def test_readme_tree_is_the_package() -> None:
    tree = next(block for block in fenced("text") if block.startswith("src/unidiffuser/"))
    drawn = set(re.findall(r"^  ([a-z0-9_]+(?:\.py|/))", tree, flags=re.M))
    hidden = {"__init__.py", "__main__.py"}
    real = {path.name for path in PACKAGE.glob("*.py")} - hidden
    real |= {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert drawn == real


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
