"""python/zeropage/_C.pyi, from which mypy and editors know the C++ module."""

import ast
import subprocess
import sys
from pathlib import Path

import zeropage

STUB = Path(zeropage.__file__).with_name("_C.pyi")


def names_of(text: str) -> set[str]:
    """Functions, classes, methods with the names of their arguments. Types differ between versions of pybind11."""

    def of(body: list[ast.stmt], prefix: str) -> set[str]:
        names: set[str] = set()
        for node in body:
            if isinstance(node, ast.ClassDef):
                names |= {prefix + node.name} | of(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                arguments = ", ".join(argument.arg for argument in (*node.args.args, *node.args.kwonlyargs))
                names.add(f"{prefix}{node.name}({arguments})")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
        return names

    return of(ast.parse(text).body, "")


def test_the_stub_is_that_of_the_module(tmp_path):
    """Catches a function of the module that is missing in the stub, and one in the stub that the module does not
    have."""
    run = "import mypy.stubgen; mypy.stubgen.main()"
    command = [sys.executable, "-c", run, "-q", "-m", "zeropage._C", "-o", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    made = names_of((tmp_path / "zeropage" / "_C.pyi").read_text())
    kept = names_of(STUB.read_text())
    assert len(made) > 300
    assert made == kept, f"run `make stubs`; missing: {sorted(made - kept)}; too many: {sorted(kept - made)}"
