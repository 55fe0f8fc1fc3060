"""A Hugging Face model and its tokenizer, unchanged, addressed in our words."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from corrigenda.errors import QuantisedWeights
from corrigenda.lm.compiled import unwrap
from corrigenda.lm.families import Family
from corrigenda.lm.grad_mode import leave_inference_mode
from corrigenda.lm.head import logits_of
from corrigenda.lm.hooks import Hooks, TensorMap, Term, additions
from corrigenda.lm.interceptors import Interceptors
from corrigenda.lm.loading import Placement, load_pair, require_fast, require_trainable
from corrigenda.lm.naming import encode_prompts, gather, name_points, stack_named
from corrigenda.lm.probing import resolve
from corrigenda.lm.prompt_ends import PromptEnds
from corrigenda.lm.session import ActivePatches, session_of
from corrigenda.lm.sites import Point, PointRole, Site, Tokens
from corrigenda.lm.storage import OutputRows, Storage


class LanguageModel:
    """Causal language model with its fast tokenizer, addressed by layer and part.

    The model computes what it computed before. It is set to evaluation mode, and its parameters are
    frozen (`requires_grad` False) at construction; neither is undone later.

    Attributes:
        model: The Hugging Face model.
        tokenizer: Its fast tokenizer.
        family: What is known about its architecture.
        name: How messages and files refer to it.

    All that wrap the same model share its active patches and the rest of its session
    (`corrigenda.lm.session`).

    Example:
        >>> from corrigenda.testing.tiny import tiny_model
        >>> lm = tiny_model("gpt2")
        >>> lm.weight(Site(1)).shape
        torch.Size([32, 128])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        name: str = "",
        family: Family | None = None,
    ) -> None:
        """Wrap a model in memory.

        Args:
            model: A causal language model.
            tokenizer: Its fast tokenizer.
            name: How messages and files refer to it; by default the name it was loaded by.
            family: Its architecture, where it is not in the table.

        Raises:
            UnknownFamily (CG302): the architecture is not understood; the message lists what to
                declare.
            SlowTokenizer (CG305): the tokenizer gives no character offsets.
            BadConfig (CG502): the model was made in `torch.inference_mode`.
        """
        model = cast("PreTrainedModel", unwrap(model))
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        require_fast(tokenizer, self.name)
        require_trainable(model, self.name)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family or resolve(model)
        self._storage = Storage(model, self.family)
        self._hooks = Hooks(self._storage, self.family)
        session_of(model)
        # Models with ALiBi take none: they count from the mask.
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @classmethod
    @leave_inference_mode
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
        **placing: Unpack[Placement],
    ) -> LanguageModel:
        """Load a model and its tokenizer, from safetensors files only.

        Args:
            name_or_path: "pocket" and "pocket-gpt2" are inside the package; otherwise a folder or
                a name on the Hugging Face hub.
            dtype: By default the one it was saved in; float32 for those of the package.
            device: Where it should be.
            trust_remote_code: Whether code that comes with the model may run.
            **placing: See `corrigenda.lm.loading.Placement`.

        Raises:
            BadConfig (CG502): `placing` does not go with the rest.
            UnknownModel (CG301): no model there.
            UnknownFamily (CG302): its architecture is not understood.
            SlowTokenizer (CG305): its tokenizer gives no character offsets.
            PickleRefused (CG403): its weights are pickled.
        """
        model, tokenizer = load_pair(
            name_or_path,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            placing=placing,
        )
        return cls(model, tokenizer, name=str(name_or_path))

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """Copy the model; what is active on this one is not active on the copy."""
        model = copy.deepcopy(self.model, memo)
        return LanguageModel(model, self.tokenizer, name=self.name, family=self.family)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.model, self.tokenizer, self.name, self.family)

    def __repr__(self) -> str:
        shape = f"{self.num_layers} layers x {self.d_model}"
        return f"<{self.name}: {self.family.name}, {shape}, {self.dtype}>"

    @property
    def patches(self) -> ActivePatches[Any]:
        """The patches active on the model, in order of application."""
        return ActivePatches(session_of(self.model))

    @property
    def interceptors(self) -> Interceptors:
        """Active edits that rewrite the model's prompts, or answer in its place."""
        return session_of(self.model).interceptors

    @property
    def prompt_ends(self) -> PromptEnds:
        """Where the prompts of the running pass end."""
        return session_of(self.model).prompt_ends

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self._storage.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def d_inner(self) -> int:
        """Width of the feed-forward blocks: of one expert where block 0 has experts."""
        if "mlp.down" not in self.family.slots:
            return int(self.model.config.get_text_config().intermediate_size)
        expert = 0 if self.num_experts(0) else None
        return self.shape(Site(0, "mlp.down", expert))[1]

    @property
    def context_length(self) -> int:
        """Most tokens in a row."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.model.get_input_embeddings().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in."""
        return self.model.dtype

    @property
    def is_quantised(self) -> bool:
        """Whether weights are stored quantised, so that they cannot be written."""
        if getattr(self.model, "is_quantized", False):
            return True
        configured = getattr(self.model.config, "quantization_config", None) is not None
        return configured or self._storage.is_quantised()

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's own blocks."""
        return self._storage.blocks

    def num_experts(self, layer: int) -> int:
        """Return the number of experts in a block's feed-forward part; 0 where it is dense."""
        self._storage.require_layer(layer)
        return self._storage.num_experts(layer)

    def weight(self, site: Site) -> Float[Tensor, "d_out d_in"]:
        """Return a weight as (d_out, d_in), however it is stored.

        A view of the parameter, except where its rows are scattered over a fused one (GPT-NeoX
        queries, keys and values); use `write` to change it.

        Raises:
            UnknownSite (CG303): no such layer, part or expert.
            QuantisedWeights (CG304): it is stored quantised.
        """
        return self._storage.weight(site)

    def values(self, site: Site) -> Float[Tensor, "d_out d_in"]:
        """Return a weight to be read only, dequantised where it is stored quantised."""
        return self._storage.values(site)

    def shape(self, site: Site) -> tuple[int, int]:
        """Return (d_out, d_in) of a weight, also of one that is stored quantised.

        Raises:
            UnknownSite (CG303): no such layer, part or expert.
            QuantisedWeights (CG304): its module packs it and does not tell its sizes.
        """
        return self._storage.shape(site)

    def device_at(self, site: Site) -> torch.device:
        """Return where a weight is, also one that is stored quantised."""
        return self._storage.device(site)

    def bias(self, site: Site) -> Float[Tensor, " d_out"] | None:
        """Return a bias, None where there is none."""
        return self._storage.bias(site)

    def write(self, site: Site, weight: Float[Tensor, "d_out d_in"]) -> None:
        """Copy a weight into the model, converted to its dtype and layout.

        Raises:
            UnknownSite (CG303): no such layer, part or expert.
            QuantisedWeights (CG304): the model is quantised.
            ValueError: the shape is not that of `weight(site)`.
        """
        if self.is_quantised:
            raise QuantisedWeights(
                "quantised weights are never written.",
                where=f"{self.name}, site {site}",
                hint="Load the model in float32, bfloat16 or float16.",
            )
        self._storage.write(site, weight)

    def parameter_name(self, site: Site) -> str:
        """Return the name, in the model's state dict, of the parameter that holds a weight."""
        place = self._storage.find(site)
        return f"{place.path}.{place.parameter}"

    def module_path(self, site: Site) -> str:
        """Return the path of the module that holds a weight."""
        return self._storage.find(site).path

    def module(self, site: Site) -> nn.Module:
        """Return the module that holds a weight; fused parts share one."""
        return self._storage.find(site).module

    def rows(self, site: Site) -> OutputRows:
        """Return which outputs of `module(site)` are this site's: all, unless it is fused."""
        return self._storage.find(site).rows

    @overload
    def tap(
        self,
        tokens: Tokens,
        points: Sequence[Point],
        *,
        positions: Int[Tensor, " batch"] | Int[Tensor, "batch k"] | None = None,
    ) -> dict[Point, Tensor]: ...
    @overload
    def tap(
        self,
        tokens: str,
        *,
        prompt: str | Sequence[str],
        layer: int | Sequence[int] | None = None,
        role: PointRole = "value",
    ) -> Tensor: ...
    @torch.no_grad()
    def tap(
        self,
        tokens: Tokens | str,
        points: Sequence[Point] = (),
        *,
        positions: Int[Tensor, " batch"] | Int[Tensor, "batch k"] | None = None,
        prompt: str | Sequence[str] = (),
        layer: int | Sequence[int] | None = None,
        role: PointRole = "value",
    ) -> dict[Point, Tensor] | Tensor:
        """Capture tensors in one pass that stops after the last of them; no gradients.

        Either at points of a batch of tokens, or by names: `lm.tap("mlp.down", layer=5,
        prompt="The capital of France is")` returns (pos, d). With several prompts the shape is
        (batch, pos, d), with several layers there is a leading axis for them. Shorter prompts are
        padded on the left, so `[..., -1, :]` is the last token of each; padding is NaN.

        Inputs and outputs of an expert's weight exist only for the tokens routed to it: rows of
        other tokens are NaN.

        Args:
            tokens: The batch; or a part of a block ("mlp.down", "attn.q", ...), a site
                ("5.mlp.down"), or "state" for the residual stream after a block.
            points: What to capture.
            positions: Which positions of each row; by default all.
            prompt: With a name: the text, or several.
            layer: With a name: the block, or several; -1 with "state" is what enters block 0.
            role: With a part: "value" is the output of its weight, "key" the input, "write" what
                the sub-block adds to the residual stream.

        Returns:
            By point, (batch, pos, d); with `positions` (batch, d) or (batch, k, d). With a name,
            one tensor, see above.

        Raises:
            UnknownSite (CG303): the model has no such point.
            PromptTooLong (CG105): a prompt exceeds the context.

        Example:
            >>> from corrigenda.testing.tiny import tiny_model
            >>> lm = tiny_model("gpt2")
            >>> lm.tap("mlp.down", layer=1, prompt="Rome is").shape
            torch.Size([2, 32])
            >>> lm.tap("state", layer=range(4), prompt=["Rome", "Rome is"])[:, :, -1].shape
            torch.Size([4, 2, 32])
        """
        if isinstance(tokens, str):
            batch = encode_prompts(self, prompt).to(self.device)
            found = self.run_until(batch, name_points(tokens, layer, role))
            read = stack_named(found, batch, several_layers=not isinstance(layer, int | None))
            return read.squeeze(-3) if isinstance(prompt, str) else read
        if positions is None:
            return self.run_until(tokens, points)
        return self.run_until(tokens, points, keep=lambda tensor: gather(tensor, positions))

    def mark_prompt_ends(
        self, ends: Sequence[int] | Int[Tensor, " batch"]
    ) -> AbstractContextManager[None]:
        """Set where the prompts of the next passes end, for programs that feed answers with them.

        Edits that are routed on the prompt (GRACE, MELO, SERAC's kind) decide at its last token. In
        a pass over prompt and answer together that place cannot be told from the tokens, so without
        this the whole row is taken as the prompt, and the edit is missed.

        Args:
            ends: For each row of the batch, the column of the prompt's last token, padding counted.

        Example:
            >>> from corrigenda.testing.tiny import tiny_model
            >>> lm = tiny_model("gpt2")
            >>> ids = torch.tensor([[5, 6, 7, 8]])  # a prompt of three tokens, an answer of one
            >>> with lm.mark_prompt_ends([2]):
            ...     lm.model(ids).logits.shape
            torch.Size([1, 4, 512])
        """
        return self.prompt_ends.mark(torch.as_tensor(ends, dtype=torch.long, device=self.device))

    def run_until(
        self, tokens: Tokens, points: Sequence[Point], *, keep: TensorMap | None = None
    ) -> dict[Point, Tensor]:
        """Run the model until all points are reached, and return their tensors; gradients flow.

        Args:
            tokens: The batch.
            points: Where to read.
            keep: What to keep of each tensor; by default all of it.

        Raises:
            UnknownSite (CG303): the model has no such point.
        """
        if not points:
            return {}
        return self._hooks.run_until(points, lambda: self._forward(tokens), keep, self.device)

    def swap(self, transforms: Mapping[Point, TensorMap]) -> AbstractContextManager[None]:
        """Replace tensors of the forward pass, until left.

        Args:
            transforms: By point, a function from the tensor (batch, pos, d) to the one that takes
                its place. Gradients flow through. What was replaced is what `tap` and swaps entered
                later see. At experts, only rows of tokens routed to them count; others are NaN.

        Raises:
            UnknownSite (CG303): the model has no such point.
        """
        return self._hooks.attached(transforms, home=self.device)

    def add(
        self, terms: Mapping[Site, Term], *, inputs: Mapping[Site, Point] | None = None
    ) -> AbstractContextManager[None]:
        """Add a term, made from a weight's input, to the weight's output, until left.

        Gradients flow to what a term is made of; see `corrigenda.lm.hooks.additions` for dtypes.

        Args:
            terms: By site, a function from input and output of the weight to what is added.
            inputs: Points that terms read in place of the input of their own weight.

        Raises:
            UnknownSite (CG303): the model has no such point.
        """
        return self._hooks.attached(additions(terms, inputs))

    def logits(self, tokens: Tokens) -> Float[Tensor, "batch pos vocab"]:
        """Run the model; gradients flow to what `swap` puts in."""
        return self._forward(tokens)

    def head(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Turn states after the last block into logits: final norm, head, soft-capping."""
        return logits_of(self.model, self.family, hidden)

    def digest(self) -> str:
        """Return a hash of all weights, dtypes and the configuration; see `corrigenda.lm.digest`.

        Hashes every weight each time: about a second for each gigabyte.
        """
        return session_of(self.model).tensor_digests.digest(self.model, fresh=True)

    def recall_digest(self) -> str:
        """Return what `digest` returns, and hash only weights that have changed since they were.

        What has changed is told by memory, version counter and sums of bits; see
        `corrigenda.lm.digest.TensorDigests`.
        """
        return session_of(self.model).tensor_digests.digest(self.model, fresh=False)

    def _forward(self, tokens: Tokens) -> Float[Tensor, "batch pos vocab"]:
        tokens = tokens.to(self.device)
        positions = {"position_ids": tokens.position_ids} if self._takes_positions else {}
        mask = tokens.mask.long()
        with self._hooks.require_fired():
            return self.model(
                input_ids=tokens.ids, attention_mask=mask, use_cache=False, **positions
            ).logits


def _rebuild(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, family: Family
) -> LanguageModel:
    return LanguageModel(model, tokenizer, name=name, family=family)
