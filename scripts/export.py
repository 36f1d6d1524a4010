"""Export the weights of a network: python -m scripts.export outputs/digits-resnet50/.../seed-1 weights.safetensors

    FOLDER, run=FOLDER  the last checkpoint of a run; which=best takes the one chosen on val
    checkpoint=FILE     a checkpoint that train.py wrote
    --card              write a model card beside the weights, weights.md, with a model-index

The file holds tensors and text, nothing that can run: `safetensors.torch.load_file` reads it anywhere, and so does
`model.pretrained=weights.safetensors` here. Its keys are the network's own (torchvision's, for a ResNet), its weights
those that training evaluated, averaged ones where there are any. The text says what they are: the plan, the step and
the commit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from configs.checking import UserError
from configs.command_line import read_values
from engine.files import write_aside
from engine.run_directory import RunDirectory
from experiment.source import NetworkSource
from experiment.trained import described, load, weights_of
from scripts.entry import guarded
from scripts.model_card import card_text


def export(source: NetworkSource, target: Path, card: bool = False) -> dict[str, str]:
    """Write the weights, and their card if asked for; returns the text that stands inside their file.

    Raises:
        UserError: if there is no network to export, or its weights cannot be written this way.
        OSError: if the file cannot be written; what stood there before is untouched.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("exporting needs the package safetensors: pip install '.[train,export]'") from error
    plan, payload = load(source)
    weights = {key: value.contiguous() for key, value in weights_of(plan, payload).items()}
    # The text inside the file: a checkpoint without its run has no record to name a commit from.
    summary = RunDirectory(Path(source.run)).summary() if source.run is not None else {}
    text = {"format": "pt", "step": str(payload["step"]), "checkpoint": described(payload)}
    text |= {"plan": json.dumps(plan.values()), "source": str(source.run or source.checkpoint)}
    if source.run is not None:
        text |= {"which": source.which, "commit": str(summary.get("environment", {}).get("commit"))}
    write_aside(target, [save(weights, text)])
    if card:
        write_aside(target.with_suffix(".md"), [card_text(plan, summary, target, source.which).encode()])
    return text


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    card, arguments = "--card" in arguments, [argument for argument in arguments if argument != "--card"]
    targets = [argument for argument in arguments if argument.endswith(".safetensors") and "=" not in argument]
    if len(targets) != 1:
        raise UserError("name one file to write, ending in .safetensors; see --help")
    target = Path(targets[0])
    source = read_values([argument for argument in arguments if argument != targets[0]], NetworkSource)
    source.check()
    text = export(source, target, card)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, of checkpoint {text['checkpoint']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
