"""The small arithmetic in the family files: names of config.json keys, ``and``, ``or``, ``not``, + - * / // % **,
``a.b``, ``a[i]``, comparisons, ``in``, ``x if y else z`` and the functions of ``_FUNCTIONS``.

Only our own data files are ever evaluated; values of config.json are operands, never code.
"""

import ast
import math
import operator
from collections.abc import Mapping
from functools import lru_cache

from wisca_core.errors import ConfigMismatch

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, power: base**power if 0 <= power <= 64 and abs(base) <= 1 << 24 else None,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITY = {ast.Eq: operator.eq, ast.NotEq: operator.ne}


def evaluate(expression: str, names: Mapping[str, object]) -> object:
    """Value of ``expression``; a missing name is None. Raises ConfigMismatch when an operand is no number or is
    zero.
    """
    try:
        return _value(_parse(expression), names)
    except (TypeError, ZeroDivisionError, AttributeError, OverflowError, LookupError) as error:
        used = sorted(
            {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)} - _FUNCTIONS.keys()
        )
        found = ", ".join(f"{name} = {_short_repr(names.get(name))}" for name in used)
        raise ConfigMismatch(f"config.json does not give {expression}: {found}. Check these keys.") from error


def whole(
    expression: str,
    names: Mapping[str, object],
    meaning: str,
    at_least: int = 1,
    at_most: int = 1 << 24,
    layer: int = 0,
) -> int:
    """The expression as a whole number within bounds, else ConfigMismatch that names ``meaning``. Of a list, the value
    of ``layer``.
    """
    value = evaluate(expression, names)
    if isinstance(value, (list, tuple)):
        value = value[layer] if layer < len(value) else None
    if not _is_number(value) or abs(value) == math.inf or value != value or int(value) != value:
        raise ConfigMismatch(
            f"config.json gives {meaning} = {_short_repr(value)} ({expression}); a whole number is needed."
        )
    if not at_least <= value <= at_most:
        raise ConfigMismatch(
            f"config.json gives {meaning} = {_short_repr(value)}; between {at_least} and {at_most:,} is possible."
        )
    return int(value)


@lru_cache(maxsize=4096)
def _parse(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _last_like(kinds: object, layer: object, before: object) -> int | None:
    """The last layer below ``before`` of the same kind as ``layer``."""
    return next((i for i in range(before - 1, -1, -1) if kinds[i] == kinds[layer]), None)


def _repeat(value: object, times: object) -> list:
    """A list of ``times`` equal entries."""
    if not isinstance(times, int) or not 0 <= times <= 1 << 14:
        raise TypeError("a list of this length")
    return [value] * times


_FUNCTIONS = {"last_like": _last_like, "len": len, "repeat": _repeat}


def _short_repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _value(node: ast.expr, names: Mapping[str, object]) -> object:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name)
        case ast.List(elts=elements):
            return [_value(one, names) for one in elements]
        case ast.Attribute(value=inner, attr=name):
            below = _value(inner, names)
            return below.get(name) if isinstance(below, Mapping) else None
        case ast.Subscript(value=inner, slice=index):
            below, at = _value(inner, names), _value(index, names)
            if isinstance(below, Mapping):
                return below.get(at, below.get(str(at)))  # JSON writes whole-number keys as text
            is_index = isinstance(below, (list, tuple)) and isinstance(at, int) and -len(below) <= at < len(below)
            return below[at] if is_index else None
        case ast.BoolOp(op=op, values=parts):
            stops = isinstance(op, ast.Or)
            for part in parts:
                found = _value(part, names)
                if bool(found) == stops:
                    break
            return found
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, names)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, names)
        case ast.IfExp(test=test, body=yes, orelse=no):
            return _value(yes if _value(test, names) else no, names)
        case ast.BinOp(left=a, op=op, right=b):
            return _numbers(op, _value(a, names), _value(b, names))
        case ast.Compare(left=a, ops=[op], comparators=[b]):
            left, right = _value(a, names), _value(b, names)
            if type(op) in _EQUALITY:
                return _EQUALITY[type(op)](left, right)
            if isinstance(op, (ast.In, ast.NotIn)):
                is_in = isinstance(right, (list, tuple, Mapping)) and left in right
                return is_in == isinstance(op, ast.In)
            return _numbers(op, left, right)
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(one, names) for one in arguments))
    raise ValueError(f"a family file uses {ast.dump(node)}, which the expressions do not know")


def _numbers(op: ast.AST, left: object, right: object) -> object:
    if not (_is_number(left) and _is_number(right)):
        raise TypeError("text and lists can be multiplied too, to any size")
    return _OPERATORS[type(op)](left, right)
