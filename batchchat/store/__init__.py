"""The store: what a run commits is durable, and becomes the Parquet dataset. `store.py` says who calls what."""

from __future__ import annotations

from batchchat.store.cleaning import OldOutput, old_outputs, remove_output
from batchchat.store.commands import CommandFiles
from batchchat.store.commit_log import Sealing
from batchchat.store.completions import Completions
from batchchat.store.held import HeldOutput
from batchchat.store.index import (
    ARCHIVED,
    NONE,
    OK,
    Counts,
    KeyIndex,
    RecordIndex,
    is_live,
    key_digest,
    kind_of,
)
from batchchat.store.journal import AnswerEntry, Entry, SettledEntry, SpendOnly
from batchchat.store.location.choice import evaluation_outputs, is_output_folder, judge_outputs, running_outputs
from batchchat.store.location.port import Location
from batchchat.store.output import (
    Output,
    earlier_prompts,
    frozen_schema,
    is_output,
    iter_output,
    read_output,
    read_state,
)
from batchchat.store.recovery import Recovery
from batchchat.store.review_files import has_review_file, read_review_lines, write_review_lines
from batchchat.store.schema import RECORD_SCHEMA, Frozen, joined_parsed, output_schema
from batchchat.store.sharding import Shards, check_shards, lock_holder, running_places
from batchchat.store.state import batches_folder, check_currency
from batchchat.store.store import Store, StoreChange
from batchchat.store.tail import OutputTail, open_tail
from batchchat.store.verify import VerifyReport, verify

__all__ = [
    "ARCHIVED",
    "NONE",
    "OK",
    "RECORD_SCHEMA",
    "AnswerEntry",
    "CommandFiles",
    "Completions",
    "Counts",
    "Entry",
    "Frozen",
    "HeldOutput",
    "KeyIndex",
    "Location",
    "OldOutput",
    "Output",
    "OutputTail",
    "RecordIndex",
    "Recovery",
    "Sealing",
    "SettledEntry",
    "Shards",
    "SpendOnly",
    "Store",
    "StoreChange",
    "VerifyReport",
    "batches_folder",
    "check_currency",
    "check_shards",
    "earlier_prompts",
    "evaluation_outputs",
    "frozen_schema",
    "has_review_file",
    "is_live",
    "is_output",
    "is_output_folder",
    "iter_output",
    "joined_parsed",
    "judge_outputs",
    "key_digest",
    "kind_of",
    "lock_holder",
    "old_outputs",
    "open_tail",
    "output_schema",
    "read_output",
    "read_review_lines",
    "read_state",
    "remove_output",
    "running_outputs",
    "running_places",
    "verify",
    "write_review_lines",
]
