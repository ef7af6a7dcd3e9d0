"""CloudWatch's metric math over one period, as far as the templates use it: arithmetic, comparison, IF, FILL.

A metric without a datapoint is None. Arithmetic takes it for 0 beside one that has a number (CloudWatch's
user guide, "Using metric math"), and drops what is divided by it; what is compared with a constant stays
None, unless FILL gives it a number. How FILL treats a metric that had no datapoint for hours the guide does
not say, so no expression may hang on it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

Value = float | None
_ARITHMETIC: Final[dict[type[ast.AST], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Final[dict[type[ast.AST], Callable[[float, float], bool]]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
}


def worked_out(expression: str, values: Mapping[str, Value]) -> Value:
    """The expression's value. Raises KeyError for a metric that is not given, ValueError for other math."""
    text = re.sub(r"\b(AND|OR)\b", lambda found: found[0].lower(), expression)
    return _value(ast.parse(text, mode="eval").body, values)


def _value(node: ast.expr, values: Mapping[str, Value]) -> Value:  # noqa: PLR0911 - one for each kind
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, values), _value(node.right, values)
        if (left is None and right is None) or (isinstance(node.op, ast.Div) and not right):
            return None
        return _ARITHMETIC[type(node.op)](left or 0.0, right or 0.0)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        compare = _COMPARISONS[type(node.ops[0])]
        return _of_both(compare, _value(node.left, values), _value(node.comparators[0], values))
    if isinstance(node, ast.BoolOp):
        parts = [_value(one, values) for one in node.values]
        if None in parts:
            return None
        return float(all(parts) if isinstance(node.op, ast.And) else any(parts))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _called(node.func.id, node.args, values)
    raise ValueError(f"not worked out here: {ast.unparse(node)}")


def _called(name: str, given: list[ast.expr], values: Mapping[str, Value]) -> Value:
    if name == "IF":
        condition = _value(given[0], values)
        return None if condition is None else _value(given[1 if condition else 2], values)
    if name == "FILL":
        found = _value(given[0], values)
        return _value(given[1], values) if found is None else found
    raise ValueError(f"not worked out here: {name}")


def _of_both(function: Callable[[float, float], float], left: Value, right: Value) -> Value:
    return None if left is None or right is None else float(function(left, right))
