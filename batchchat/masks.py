"""Plain expressions over columns, computed by Arrow for a whole batch at once.

What is taken: comparisons of a column, or of a field inside of one, with a fixed text, number or boolean, `in` a list
of these, a fixed text `in` a column, and `and`, `or`, `not` between them. A batch for which Arrow would not say exactly
what the expression says of each row by itself is left to the slow way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, TemplateError, nodes

_COMPARE: dict[str, Callable[[pa.Array, Any], pa.Array]] = {
    "eq": pc.equal,
    "ne": pc.not_equal,
    "lt": pc.less,
    "lteq": pc.less_equal,
    "gt": pc.greater,
    "gteq": pc.greater_equal,
}
_MIRRORED = {"eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "lteq": "gteq", "gteq": "lteq"}
_LARGEST = 2**53
"""Up to here a float holds each whole number, so that both kinds compare exactly."""


class _NotExactError(Exception):
    """Arrow would not say the same of this batch as the expression does."""


def mask_of(expression: str) -> Callable[[pa.RecordBatch], pa.Array | None] | None:
    """Return what computes an expression for a batch; None if the expression is not one of those that are taken.

    What is returned gives None for a batch that must be computed row by row.
    """
    try:
        parsed = Environment(autoescape=True).parse(f"{{{{ {expression} }}}}")
    except TemplateError:
        return None
    output = parsed.body[0] if len(parsed.body) == 1 else None
    if not isinstance(output, nodes.Output) or len(output.nodes) != 1 or not _taken(output.nodes[0]):
        return None
    tree = output.nodes[0]

    def compute(batch: pa.RecordBatch) -> pa.Array | None:
        try:
            return _mask(tree, batch)
        except (_NotExactError, pa.ArrowException):
            return None

    return compute


def _taken(node: nodes.Node) -> bool:
    if isinstance(node, nodes.And | nodes.Or):
        return _taken(node.left) and _taken(node.right)
    if isinstance(node, nodes.Not):
        return _taken(node.node)
    if not isinstance(node, nodes.Compare) or len(node.ops) != 1:
        return False
    left, op, right = node.expr, node.ops[0].op, node.ops[0].expr
    if op in {"in", "notin"}:
        listed = isinstance(right, nodes.List | nodes.Tuple) and all(
            isinstance(item, nodes.Const) for item in right.items
        )
        within = isinstance(left, nodes.Const) and isinstance(left.value, str) and _path(right) is not None
        return (_path(left) is not None and listed) or within
    sides = (_path(left) is not None and isinstance(right, nodes.Const)) or (
        _path(right) is not None and isinstance(left, nodes.Const)
    )
    return op in _COMPARE and sides


def _path(node: nodes.Node) -> list[str] | None:
    """The column, and the fields inside of it, that an expression names."""
    if isinstance(node, nodes.Name):
        return [node.name]
    if isinstance(node, nodes.Getattr):
        inner = _path(node.node)
        return None if inner is None else [*inner, node.attr]
    return None


def _mask(node: nodes.Node, batch: pa.RecordBatch) -> pa.Array:
    if isinstance(node, nodes.And):
        return pc.and_(_mask(node.left, batch), _mask(node.right, batch))
    if isinstance(node, nodes.Or):
        return pc.or_(_mask(node.left, batch), _mask(node.right, batch))
    if isinstance(node, nodes.Not):
        return pc.invert(_mask(node.node, batch))
    if not isinstance(node, nodes.Compare):
        raise _NotExactError
    left, op, right = node.expr, node.ops[0].op, node.ops[0].expr
    if op not in _COMPARE:
        return _within(left, right, batch, negated=op == "notin")
    if isinstance(left, nodes.Const):
        left, op, right = right, _MIRRORED[op], left
    column = _column(left, batch)
    value = right.value if isinstance(right, nodes.Const) else None
    _check_kinds(column.type, value)
    if column.null_count and op not in {"eq", "ne"}:
        raise _NotExactError  # such a row cannot be compared, which is an error of its own
    return pc.fill_null(_COMPARE[op](column, pa.scalar(value, _scalar_type(column.type))), op == "ne")


def _within(left: nodes.Node, right: nodes.Node, batch: pa.RecordBatch, *, negated: bool) -> pa.Array:
    if isinstance(left, nodes.Const):
        column = _column(right, batch)
        if column.type != pa.string() or column.null_count:
            raise _NotExactError
        found = pc.match_substring(column, left.value)
    else:
        column = _column(left, batch)
        items = right.items if isinstance(right, nodes.List | nodes.Tuple) else []
        values = [item.value for item in items if isinstance(item, nodes.Const)]
        for value in values:
            _check_kinds(column.type, value)
        if not values:
            raise _NotExactError
        found = pc.is_in(column, value_set=pa.array(values, _scalar_type(column.type)), skip_nulls=True)
    return pc.invert(found) if negated else found


def _column(node: nodes.Node, batch: pa.RecordBatch) -> pa.Array:
    name, *fields = _path(node) or [""]
    if name not in batch.schema.names:
        raise _NotExactError
    array = batch.column(name)
    for field in fields:
        # A field of a null cannot be asked for: that row has an error, and no value.
        if not pa.types.is_struct(array.type) or array.null_count or array.type.get_field_index(field) < 0:
            raise _NotExactError
        array = pc.struct_field(array, [array.type.get_field_index(field)])
    return array


def _scalar_type(kind: pa.DataType) -> pa.DataType:
    return pa.float64() if pa.types.is_floating(kind) else kind


def _check_kinds(kind: pa.DataType, value: object) -> None:
    """Let through only what Arrow and Python compare alike."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    if (
        (kind == pa.string() and isinstance(value, str))
        or (kind == pa.bool_() and isinstance(value, bool))
        or (kind == pa.int64() and number and isinstance(value, int))
        or (kind == pa.int32() and number and isinstance(value, int) and abs(value) < 2**31)
        or (kind == pa.float64() and number)
    ):
        return
    raise _NotExactError
