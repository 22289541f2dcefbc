"""The small arithmetic in families.toml: names of config.json keys, ``or``, + - * / //, ``a.b`` and ``==``.

Only our own data file is ever evaluated; values of config.json are operands, never code.
"""

import ast
import math
import operator
from collections.abc import Mapping

from wisca_core.errors import ConfigMismatch

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(expression: str, names: Mapping[str, object]) -> object:
    """Value of ``expression``; a missing name is None. Raises ConfigMismatch when an operand is no number or is zero.
    """
    try:
        return _value(ast.parse(expression, mode="eval").body, names)
    except (TypeError, ZeroDivisionError, AttributeError, OverflowError) as error:
        used = sorted({node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)})
        found = ", ".join(f"{name} = {_shown(names.get(name))}" for name in used)
        raise ConfigMismatch(f"config.json does not give {expression}: {found}. Check these keys.") from error


def whole(expression: str, names: Mapping[str, object], meaning: str, at_least: int = 1, at_most: int = 1 << 24) -> int:
    """The expression as a whole number within bounds, else ConfigMismatch that names ``meaning``."""
    value = evaluate(expression, names)
    if not _is_number(value) or abs(value) == math.inf or value != value or int(value) != value:
        raise ConfigMismatch(f"config.json gives {meaning} = {_shown(value)} ({expression}); a whole number is needed.")
    if not at_least <= value <= at_most:
        raise ConfigMismatch(f"config.json gives {meaning} = {_shown(value)}; between {at_least} and {at_most:,} is possible.")
    return int(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(node: ast.expr, names: Mapping[str, object]) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        below = _value(node.value, names)
        return below.get(node.attr) if isinstance(below, Mapping) else None
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        for part in node.values:
            found = _value(part, names)
            if found:
                return found
        return found
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, names), _value(node.right, names)
        if not (_is_number(left) and _is_number(right)):
            raise TypeError("text and lists can be multiplied too, to any size")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq):
        return _value(node.left, names) == _value(node.comparators[0], names)
    raise ValueError(f"families.toml uses {ast.dump(node)}, which the expressions do not know")
