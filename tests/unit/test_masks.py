"""What Arrow says of a whole batch is what the expression says of each row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchchat.choosing import _Condition
from batchchat.masks import mask_of

SCHEMA = pa.schema(
    [
        ("t", pa.string()),
        ("n", pa.int64()),
        ("f", pa.float64()),
        ("b", pa.bool_()),
        ("s", pa.struct([("label", pa.string()), ("inner", pa.struct([("n", pa.int64())]))])),
        ("when", pa.timestamp("us", tz="UTC")),
    ]
)
TEXTS = st.sampled_from(["a", "b", "ab", "", "ü", "none"])
INNER = st.none() | st.fixed_dictionaries({"n": st.none() | st.integers(-3, 3)})
STRUCT = st.none() | st.fixed_dictionaries({"label": st.none() | TEXTS, "inner": INNER})
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "t": st.none() | TEXTS,
            "n": st.none() | st.integers(-3, 3),
            "f": st.none() | st.floats(-2, 2) | st.just(float("nan")),
            "b": st.none() | st.booleans(),
            "s": STRUCT,
            "when": st.none(),
        }
    ),
    min_size=1,
    max_size=12,
)
PATHS = st.sampled_from(["t", "n", "f", "b", "s.label", "s.inner.n", "s", "when"])
CONSTANTS = st.sampled_from(["'a'", "'b'", "''", "1", "-1", "0.5", "true", "false", "none", "2"])
COMPARISON = st.one_of(
    st.builds("{} {} {}".format, PATHS, st.sampled_from(["==", "!=", "<", ">", "<=", ">="]), CONSTANTS),
    st.builds("{} {} {}".format, CONSTANTS, st.sampled_from(["==", "!=", "<", ">", "<=", ">="]), PATHS),
    st.builds("{} {} [{}, {}]".format, PATHS, st.sampled_from(["in", "not in"]), CONSTANTS, CONSTANTS),
    st.builds("{} {} {}".format, st.sampled_from(["'a'", "'ü'"]), st.sampled_from(["in", "not in"]), PATHS),
)
EXPRESSIONS = st.recursive(
    COMPARISON,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=4,
)


@given(EXPRESSIONS, ROWS)
def test_a_mask_says_what_the_expression_says_of_each_row(expression: str, rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    quick = mask_of(expression)
    found = None if quick is None else quick(batch)
    if found is None:
        return
    condition = _Condition(expression, SCHEMA.names)
    slow = [condition._holds(row) for row in batch.to_pylist()]
    assert found.to_pylist() == slow


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("t == 'a'", [True, False, False]),
        ("t != 'a'", [False, True, True]),
        ("n >= 2 and t in ['a', 'b']", [False, True, False]),
        ("'a' in t", None),  # of a null nothing can be asked
        ("s.label == 'x'", [True, False, False]),
        ("not n == 1", [False, True, True]),
        ("1 < n", [False, True, True]),
        ("n == '1'", None),
        ("t | length > 1", None),
        ("row.t == 'a'", None),
        ("t", None),
    ],
)
def test_the_plain_expressions_are_quick_and_no_others(expression: str, wanted: list[bool] | None) -> None:
    rows = [
        {"t": "a", "n": 1, "s": {"label": "x"}},
        {"t": "b", "n": 2, "s": {"label": "y"}},
        {"t": None, "n": 3, "s": {"label": None}},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    quick = mask_of(expression)
    found = None if quick is None else quick(batch)
    assert (None if found is None else found.to_pylist()) == wanted
