"""What every public name of the package says of itself, beside what ruff asks for (a docstring at all).

Errors: a function that raises one of the user's errors names it. Arrays: a function that takes or gives some says their
shape or dtype. Numbers: a public constant has a line under it, or a comment above, that says what it counts.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import layercache

PACKAGE = Path(layercache.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
ARRAYS = re.compile(r"ndarray|Tensor|NDArray|\b(Floats|Ints|Bools)\b")
SHAPES = re.compile(r"\[|shape|dtype|as there")


class Function(NamedTuple):
    """A public function or method, the docstring that speaks of it, and where it is."""

    node: ast.FunctionDef
    doc: str
    where: str


def test_a_function_names_the_errors_that_it_raises() -> None:
    errors, makers = user_errors(), error_makers()
    silent = []
    for function in functions():
        for node in own(function.node):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = node.exc.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                name = makers.get(name, name)
                if name in errors and name not in function.doc:
                    silent.append(f"{function.where} raises {name}")
    assert silent == []


def test_a_function_of_arrays_says_their_shape() -> None:
    silent = []
    for function in functions():
        node = function.node
        signature = ast.unparse(node.args) + ("" if node.returns is None else ast.unparse(node.returns))
        if node.name != "__init__" and ARRAYS.search(signature) and not SHAPES.search(function.doc):
            silent.append(function.where)
    assert silent == []


def test_a_number_says_what_it_counts() -> None:
    silent = []
    for path, tree in TREES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for place, node in enumerate(tree.body):
            if is_number(node) and not any(name.startswith("_") for name in names(node)):
                following = next(one for one in tree.body[place:] if not is_number(one))
                said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if not said and not lines[node.lineno - 2].startswith("#"):
                    silent.append(f"{path.relative_to(PACKAGE)}: {', '.join(names(node))}")
    assert silent == []


def test_the_rules_see_what_they_are_for() -> None:
    """The errors and functions there are, found by the same means: an empty list would pass everything."""
    assert {"StoreError", "NoRepositoryError"} <= user_errors()
    assert error_makers()["unreadable"] == "StoreError"
    found = {function.where.partition(" ")[2] for function in functions()}
    assert {"open", "Store.matrix", "Unembedding", "extract", "mse"} <= found
    assert {name for tree in TREES.values() for node in tree.body if is_number(node) for name in names(node)} > {
        "FORMAT",
        "SHARD_BYTES",
    }


def functions() -> Iterator[Function]:
    """Yield every public function and method; a class's docstring speaks of its `__init__`, help texts of commands apart."""
    for path, tree in TREES.items():
        for prefix, body, of_class in public_bodies(tree.body, "", ""):
            for node in body:
                if isinstance(node, ast.FunctionDef) and not _is_command(node):
                    where = f"{path.relative_to(PACKAGE)} {prefix}"
                    if node.name == "__init__":
                        yield Function(node, of_class, where.removesuffix("."))
                    elif not node.name.startswith("_"):
                        yield Function(node, ast.get_docstring(node) or "", f"{where}{node.name}")


def public_bodies(body: list[ast.stmt], prefix: str, doc: str) -> Iterator[tuple[str, list[ast.stmt], str]]:
    """Yield a module's body and those of its public classes: what opens their names, the body, the class's docstring."""
    yield prefix, body, doc
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_bodies(node.body, f"{prefix}{node.name}.", ast.get_docstring(node) or "")


def own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield what is in a function, but not in functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def user_errors() -> set[str]:
    """Name the classes of errors that are the user's to mend."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"LayercacheError"}
    while new := {one.name for one in classes if any(ast.unparse(base) in found for base in one.bases)} - found:
        found |= new
    return found


def error_makers() -> dict[str, str]:
    """Return the functions that make such an error, and which."""
    every = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    made = {node.name: ast.unparse(node.returns) for node in every if node.returns is not None}
    errors = user_errors()
    return {name: error for name, error in made.items() if error in errors}


def is_number(node: ast.stmt) -> bool:
    """Tell whether a statement gives a name to a number, or names to several: `ROWS, WIDTH = 16, 8 * 2**20`."""
    if not isinstance(node, ast.Assign):
        return False
    parts = list(ast.walk(node.value))
    plain = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.operator, ast.unaryop, ast.expr_context)
    constants = [part.value for part in parts if isinstance(part, ast.Constant)]
    return all(isinstance(part, plain) for part in parts) and all(type(one) in (int, float) for one in constants)


def names(node: ast.stmt) -> list[str]:
    """Return the names that a statement gives."""
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]


def _is_command(node: ast.FunctionDef) -> bool:
    return any("command" in ast.unparse(one) for one in node.decorator_list)
