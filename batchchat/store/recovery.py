"""What opening an output finds and mends: the sentences for the user, and lost or damaged state files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from batchchat.store.journal import Replay
from batchchat.store.schema import Frozen, kept_type, same_types
from batchchat.store.state import Layout


@dataclass(slots=True)
class Recovery:
    """What opening an output found and mended. `messages` are sentences for the user, empty when all was well.

    `records` were committed and not yet published; `dropped_bytes` are unfinished or damaged ends of journals;
    `set_aside` are files in the folder for damaged ones; `renamed` is where `fresh` put the old output.
    """

    records: int = 0
    dropped_bytes: int = 0
    set_aside: list[str] = field(default_factory=list)
    renamed: Path | None = None
    messages: list[str] = field(default_factory=list)

    def add_damage(self, found: Replay) -> None:
        """Note the damaged or unfinished end of a journal; do nothing if it is whole."""
        damage = found.damage
        if damage is None:
            return
        self.dropped_bytes += damage.dropped
        # A torn end is what a kill leaves, and no record in it was counted. Any other damage may have cost records.
        if damage.torn:
            self.messages.append(
                f"{found.path.name} ends in an unfinished write: {damage.dropped} bytes after byte {damage.offset} "
                "were never counted and are dropped."
            )
        else:
            self.messages.append(
                f"{found.path.name} is damaged at byte {damage.offset}: what was committed before is kept, the "
                f"{damage.dropped} bytes from there on are not believed, and their rows run again."
            )


def mend_state(layout: Layout, wanted: pa.Schema | None, currency: str | None) -> tuple[Frozen, list[str]]:
    """Write lost or damaged state files anew. Only while the output is held.

    Return the frozen types, and sentences that say what was done.
    `wanted` are the columns of the input of this run. `currency` is that of its prices.
    Raises UsageError if the output belongs to another currency, StorageError if the disk fails.
    """
    # Asked for before the rest is created, since that writes the file.
    lost_format = layout.is_output() and not (layout.state / "format.json").exists()
    layout.create_rest()
    frozen = layout.read_schema()
    messages = layout.mend()
    if lost_format:
        messages.append(f"{layout.state / 'format.json'} was missing, and is written anew.")
    if layout.check_currency(currency) is None and currency is not None:
        layout.save("state.json", {**layout.object("state.json"), "currency": currency})
    if frozen.recovered and frozen.input is not None:
        frozen = freeze_recovered(layout, frozen, wanted)
        messages.append(f"{layout.state / 'schema.json'} was lost, and is written anew from what the records are.")
    return frozen, messages


def freeze_recovered(layout: Layout, recovered: Frozen, wanted: pa.Schema | None) -> Frozen:
    """Freeze again the types that the records tell: those of the input itself where the output keeps them so."""
    schema = recovered.input
    if wanted is not None and schema is not None:
        kept = pa.schema([pa.field(column.name, kept_type(column.type)) for column in wanted])
        if same_types(kept, schema):
            schema = pa.schema([pa.field(column.name, column.type, metadata=column.metadata) for column in wanted])
    layout.save_schema(schema, recovered.parsed)
    return Frozen(schema, recovered.parsed)
