"""Where the prompt of each row ends, for edits that decide once, on the prompt, what to do.

An adapter or a memory that is routed on the prompt looks at the state of the last prompt token when
the prompt is read, and holds to that decision while the answer is generated. A caller that feeds a
target after the prompt marks where the prompt ends (`mark`); otherwise it ends at the last token
that is not padding. A pass that continues a cache belongs to the prompts read before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from corrigenda.errors import LostPrompts
from corrigenda.lm.model_hooks import ModelHook, place_hooks

Ends = Int[Tensor, " batch"]
Decide = Callable[[Ends], Tensor]


class PromptDecisions(NamedTuple):
    """Decisions about the prompts of one batch, by the identity of their owners.

    Attributes:
        decided: One entry a row.
        owners: The objects that decided, so that no other takes their identity.
    """

    decided: dict[int, Tensor]
    owners: dict[int, object]

    def join(self, other: PromptDecisions) -> PromptDecisions:
        """Return those about the rows of this batch and then of another, by the same owners."""
        decided = {
            owner: torch.cat([own, other.decided[owner]]) for owner, own in self.decided.items()
        }
        return PromptDecisions(decided, self.owners)


class PromptEnds:
    """End of the prompt in each row of the running pass; one per model, as `lm.prompt_ends`.

    Passes are followed only while a patch needs it, so an unedited model runs unchanged.

    Attributes:
        continued: Whether the running pass continues prompts read before.
    """

    def __init__(self, model: nn.Module) -> None:
        """Prepare for a model; nothing is attached yet."""
        self._model = model
        self._followers = 0
        self._marked: Ends | None = None
        self._ends: Ends | None = None
        self._mask: Bool[Tensor, "batch pos"] | None = None
        self._ids: Int[Tensor, "batch pos"] | None = None
        self._decided: dict[int, Tensor] = {}
        self._owners: dict[int, object] = {}
        self._running = False
        self.continued = False

    @property
    def ends(self) -> Ends:
        """Columns of the last prompt token of each row, in the pass that read the prompts.

        Raises:
            LostPrompts (CG306): no pass was followed.
        """
        self._require_pass()
        if self._ends is None:
            raise LostPrompts(
                "these rows continue prompts that were not read with this patch active.",
                hint="Apply the patch before the prompt is read, and read it again.",
            )
        return self._ends

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """Columns of the running pass that hold tokens, not padding.

        Raises:
            LostPrompts (CG306): no pass is followed.
        """
        self._require_pass()
        assert self._mask is not None, "a pass has begun"
        return self._mask

    @property
    def ids(self) -> Int[Tensor, "batch pos"] | None:
        """Tokens of the running pass; None where it was given embeddings.

        Raises:
            LostPrompts (CG306): no pass is followed.
        """
        self._require_pass()
        return self._ids

    @property
    def are_followed(self) -> bool:
        """Whether passes are followed, so that prompts must be read as prompts."""
        return self._followers > 0

    @contextmanager
    def follow(self) -> Generator[None]:
        """Follow every pass of the model until left; may be entered several times."""
        with place_hooks(self._place):
            yield

    def _place(self, stack: ExitStack) -> None:
        stack.callback(self._leave)
        if not self._followers:
            begin = self._model.register_forward_pre_hook(ModelHook(self._begin), with_kwargs=True)
            end = self._model.register_forward_hook(ModelHook(self._end), always_call=True)
            self._handles = (begin, end)
        self._followers += 1

    def _leave(self) -> None:
        self._followers -= 1
        if not self._followers:
            for handle in self._handles:
                handle.remove()
            self._clear()

    @contextmanager
    def mark(self, ends: Ends) -> Generator[None]:
        """Set where the prompts of the next passes end: targets are fed after them.

        Args:
            ends: Column of the last prompt token of each row, padding counted.
        """
        before, self._marked = self._marked, ends
        try:
            yield
        finally:
            self._marked = before

    def decide_once(self, owner: object, decide: Decide) -> Tensor:
        """Return what was decided about each row when its prompt was read.

        Args:
            owner: The object that decides; each has a decision of its own.
            decide: Called while prompts are read, with `ends`; returns one entry a row.

        Returns:
            (batch, ...): what `decide` returned for the rows of the running pass.

        Raises:
            LostPrompts (CG306): the rows of this pass are not those whose prompts were read.
        """
        self._require_pass()
        if not self.continued:
            self._owners[id(owner)] = owner
            self._decided[id(owner)] = decide(self.ends)
        decided = self._decided.get(id(owner))
        if decided is None or (self.continued and len(decided) != self._batch):
            raise LostPrompts(
                "these rows continue prompts that were not read with this patch active.",
                hint="Apply the patch before the prompt is read, and read it again.",
            )
        return decided

    def leave_pass(self) -> None:
        """Mark that blocks run by themselves from here on, on fewer columns than the pass has."""
        self._running = False

    def select(self, rows: Int[Tensor, " chosen"]) -> None:
        """Continue with some rows of the batch only, or in another order."""
        self._decided = {
            owner: decided[rows.to(decided.device)] for owner, decided in self._decided.items()
        }

    def hold(self) -> PromptDecisions:
        """Return the decisions about the batch that ran last, to resume it after other batches."""
        return PromptDecisions(dict(self._decided), dict(self._owners))

    def resume(self, decisions: PromptDecisions) -> None:
        """Let the next pass continue the batch about which these decisions were made."""
        self._decided, self._owners = dict(decisions.decided), dict(decisions.owners)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._ids = ids
        if ids is None:
            ids = kwargs["inputs_embeds"]
        self._running = True
        self._batch, width = ids.shape[:2]
        cache = kwargs.get("past_key_values")
        self.continued = cache is not None and cache.get_seq_length() > 0
        if not self.continued:
            self._clear()
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2:
            mask = torch.ones(self._batch, width, device=ids.device)
        tokens = mask[:, -width:].bool()
        self._mask = tokens
        if self.continued:
            return
        if self._marked is not None:
            self._require_marks(self._marked, width)
            self._ends = self._marked.to(ids.device)
        else:
            columns = torch.arange(width, device=mask.device)
            self._ends = (tokens.long() * columns).amax(1)

    def _require_marks(self, marked: Ends, width: int) -> None:
        outside = len(marked) and not 0 <= int(marked.min()) <= int(marked.max()) < width
        if len(marked) != self._batch or outside:
            raise LostPrompts(
                f"the ends of {len(marked)} prompts were marked, at columns {marked.tolist()}; the "
                f"pass has {self._batch} rows of {width} columns.",
                hint="Mark one column for each row of the batch, padding counted from the left.",
            )

    def _end(self, *_: object) -> None:
        """End a pass, also where it raised; until the next one, parts of the model run alone."""
        self._running = False

    def _require_pass(self) -> None:
        if not self._running:
            raise LostPrompts(
                "a part of the model runs by itself, so it is unknown where its prompts end.",
                hint="Run the whole model (`lm.logits`, `lm.tap`, `model.generate`), or take "
                "patches that are routed on the prompt off before another method edits.",
            )

    def _clear(self) -> None:
        self._ends = self._mask = None
        self._decided.clear()
        self._owners.clear()
        self.continued = False
