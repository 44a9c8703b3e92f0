"""The server's code itself: nothing that blocks in a coroutine, nothing from other hosts in the page."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[1] / "src" / "unidiffuser" / "server"
STUDIO = SERVER / "studio"
BLOCKING = {
    "open",
    "sleep",
    "read_bytes",
    "read_text",
    "write_bytes",
    "write_text",
    "unlink",
    "rmtree",
    "execute",
    "join",
    "acquire",
    "result",
}
BLOCKING_OWNERS = {"store", "time", "os", "shutil", "subprocess", "sqlite3"}


def blocking_calls(source: str) -> Iterator[str]:
    """Calls inside coroutines that wait without awaiting: a file, a database, a sleep, a thread."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.AsyncFunctionDef):
            continue
        awaited = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Await)}
        inner = {id(n) for f in ast.walk(function) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or id(node) in awaited | inner:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if (last in BLOCKING_OWNERS and name not in ("time", "monotonic")) or (
                name in BLOCKING and last != "asyncio" and not _is_text(owner)
            ):
                yield f"{function.name}:{node.lineno}: {ast.unparse(node)[:60]}"


def _is_text(owner: ast.expr | None) -> bool:
    """A method of a string, such as ", ".join."""
    return isinstance(owner, ast.Constant)


@pytest.mark.parametrize("path", sorted(SERVER.glob("*.py")), ids=lambda p: p.name)
def test_no_coroutine_blocks(path: Path) -> None:
    allowed = {"_end", "run"} if path.name == "replicas.py" else set()
    assert [call for call in blocking_calls(path.read_text()) if call.partition(":")[0] not in allowed] == []


@pytest.mark.parametrize(
    "code",
    [
        "async def f(): open('x')",
        "async def f(): time.sleep(1)",
        "async def f(self): self.store.get(1)",
        "async def f(p): p.read_bytes()",
    ],
)
def test_the_rule_bites(code: str) -> None:
    assert list(blocking_calls(code))


def test_the_page_names_no_other_host_and_carries_no_inline_code() -> None:
    for path in STUDIO.iterdir():
        text = path.read_text()
        hosts = {host for host in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in host}
        assert not hosts, (path.name, hosts)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\son\w+=[\"']|\sstyle=[\"']",
            text,
        ), path.name


def test_no_file_of_the_page_is_long() -> None:
    assert all(len(path.read_text().splitlines()) <= 300 for path in STUDIO.iterdir())


def test_the_web_process_starts_without_torch() -> None:
    """So it listens in a moment; what needs torch lives in the worker."""
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    code = "import sys, unidiffuser.cli.serving, unidiffuser.server.serve; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(SERVER.parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_the_ways_on_the_plane() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    ended = subprocess.run(
        [node, "--test", str(Path(__file__).parent / "studio_path.test.mjs")], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
