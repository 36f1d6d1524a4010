"""The content of a data set, counted before anything is trained: python -m scripts.data_card data=... data.root=...

    python -m scripts.data_card data=folder data.root=my_images
    python -m scripts.data_card data=coco data.root=COCO > card.txt

Takes the arguments of train.py. Ends with 2 for data that would be refused, after the table that shows why.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from configs.compose import plan_of
from data.card import Card, card_of, card_text
from engine.console import table
from engine.distributed import Ranks
from experiment.build import open_data
from scripts.entry import guarded


def card_table(card: Card) -> str:
    """A line for each class, a column for each split."""
    splits = card["splits"]
    rows = [(known, *(f"{part['counts'][known]:,}" for part in splits.values())) for known in card["classes"]]
    ignored = [part["ignored"] for part in splits.values()]
    if any(ignored):
        rows.append(("(ignored)", *(f"{count:,}" for count in ignored)))
    heads = [f"{split} ({part['images']:,} images)" for split, part in splits.items()]
    return table((next(iter(splits.values()))["counted"], *heads), rows)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    plan = plan_of(*arguments)
    plan = replace(plan, recipe=replace(plan.recipe, batch_size=1))  # no batch is made
    data = open_data(plan, torch.device("cpu"), Ranks())
    card = card_of(data)
    print(card_table(card), *card_text(card), sep="\n")
    for note in [*data.notes, *card["notes"]]:
        print(f"note: {note}")
    for reason in card["refused"]:
        print(f"error: {reason}", file=sys.stderr)
    return 2 if card["refused"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
