"""What every key of a recipe's table means: the sentence below it in the code, for documents and for `help()`."""

import ast
import inspect
import textwrap

from layercache.recipe.base import Spec


def meanings(kind: type[Spec]) -> dict[str, str]:
    """Return key → meaning of a table, those it inherits first; keys without a sentence are not among them."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Spec) and base is not Spec:
            found |= _own(base)
    return found


def _own(kind: type[Spec]) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
