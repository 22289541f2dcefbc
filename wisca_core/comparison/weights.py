"""Weights of a cell on disk: what a checkpoint of an unfinished run holds, and the final model as a folder.

With adapters on a frozen base only what changes is kept: A and B, and the pairs of the base that the arm rescales. The
final folder holds the adapter, as peft writes it, for the base as it was; and, merged, the whole model, which opens
like any other.
"""

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from wisca_core.comparison.arms import Treatment
from wisca_core.comparison.folder import Cell, remove_checkpoint
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.tokens import tokenizer_folder
from wisca_core.equivalence.tokenizer import FILES
from wisca_core.errors import UnreadableInput


def kept_state(model: nn.Module, treatment: Treatment) -> dict[str, torch.Tensor]:
    """State dict of what training changes; all of it where nothing is frozen."""
    state = model.state_dict()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    if not frozen:
        return state
    ours = {id(t) for t in treatment.parameters()}
    held = {n: p for n, p in model.named_parameters(remove_duplicate=False)}
    return {n: t for n, t in state.items() if n not in frozen or id(held[n]) in ours}


def load_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Raises UnreadableInput where the checkpoint is of another model."""
    missing, unknown = model.load_state_dict(state, strict=False)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    if unknown or trained & set(missing):
        name = sorted(unknown or trained & set(missing))[0]
        raise UnreadableInput(
            f"the cell's checkpoint is of another model: {name}. Remove its resume.pt to train the cell from its start."
        )


def save_weights(spec: Spec, cell: Cell, model: nn.Module, treatment: Treatment) -> None:
    """The final model as ``cell.folder/model``, by rename; adapters beside it as ``adapter``. ``model`` is used up."""
    part, final = cell.folder / ".model.part", cell.folder / "model"
    shutil.rmtree(part, ignore_errors=True)
    if spec.model.source == "lora":
        adapter = cell.folder / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        treatment.in_original_coordinates_()
        model.save_pretrained(cell.folder / ".adapter.part")
        os.replace(cell.folder / ".adapter.part", adapter)
        model = model.merge_and_unload()
    model.save_pretrained(part)
    _with_tokenizer(spec, part)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    remove_checkpoint(cell)


def _with_tokenizer(spec: Spec, folder: Path) -> None:
    """So that the model can be run elsewhere: the files its tokens came from."""
    if spec.data.tokens != "tokenizer":
        return
    for name in (*FILES, "tokenizer_config.json", "special_tokens_map.json", "merges.txt"):
        source = tokenizer_folder(spec) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
