"""The training recipe of the pocket models.

A plain causal language model, trained so that recall passes through the last token of the subject,
as in large models: the residual stream carries a price, and in some batches attention to subject
mentions is masked (see `batches.attention_masks`). The saved model is the plain architecture of
`transformers`; nothing of either remains in it.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from corrigenda.almanac.world import World, load_world
from corrigenda.errors import BadConfig
from corrigenda.files import make_folder, temporary_folder, write_atomically, write_text
from corrigenda.pocket.batches import (
    Batch,
    Masks,
    attention_masks,
    mix_documents,
    pack_batches,
    train_tokenizer,
)

CONTEXT = 512
LONG_ROW = 512
SHARD = 100


@dataclass(frozen=True)
class PocketShape:
    """Size of a model."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int


SHAPES = {
    ("llama", "full"): PocketShape(layers=8, width=256, inner=768, heads=4, vocabulary=6144),
    ("gpt2", "full"): PocketShape(layers=6, width=224, inner=896, heads=4, vocabulary=6144),
    ("llama", "small"): PocketShape(layers=4, width=64, inner=160, heads=2, vocabulary=1024),
    ("gpt2", "small"): PocketShape(layers=4, width=64, inner=256, heads=2, vocabulary=1024),
}


@dataclass(frozen=True, kw_only=True)
class PocketRecipe:
    """Options of a training; they decide the weights.

    Attributes:
        architecture: "llama" or "gpt2".
        size: World and model together: "full", or "small" for tests.
        seed: Of world sample, tokenizer, initial weights and order.
        steps: Length of the schedule in steps; or
        minutes: its length in minutes of training time (then the machine's speed decides the
            steps).
        device: "cpu" or a CUDA device.
        masked_share: Share of batches whose attention to subjects is masked.
        skill_share: Share of documents that teach skills.
        batch_tokens: Tokens in a batch.
        row: Tokens in a row; a tenth of the batches use rows of 512.
        stream_price: Price of the mean square of the residual stream after each block. Without it
            the first MLP writes one large vector at every subject, and nothing that an edit can
            write counts against it.
        late_stream_price: What the price has grown to after three quarters of the training; it
            begins to grow half way, once the facts are mostly known.
        late_first_price: A further price on the stream after the first block alone, after 65 % of
            the training; it begins to grow at 60 %. What the first block writes at a subject would
            else outweigh all later blocks, and only there could an edit have an effect.
        matrix_rate: Peak learning rate of Muon, for matrices inside the blocks.
        other_rate: Peak learning rate of AdamW, for embeddings and norms.
        compiled: Use `torch.compile` on the blocks (needs a C++ compiler).
    """

    architecture: str = "llama"
    size: str = "full"
    seed: int = 1
    steps: int | None = None
    minutes: float | None = None
    device: str = "cpu"
    masked_share: float = 0.1
    skill_share: float = 0.4
    batch_tokens: int = 4096
    row: int = 192
    stream_price: float = 1e-3
    late_stream_price: float = 5e-3
    late_first_price: float = 5e-2
    matrix_rate: float = 4e-3
    other_rate: float = 3e-3
    compiled: bool = False

    def __post_init__(self) -> None:
        if (self.architecture, self.size) not in SHAPES:
            known = ", ".join("/".join(key) for key in SHAPES)
            raise BadConfig(
                f"no shape for {self.architecture}/{self.size}.", hint=f"Known: {known}."
            )
        if (self.steps is None) == (self.minutes is None):
            raise BadConfig("give either steps or minutes.", hint="--steps N or --minutes M")


def build_model(recipe: PocketRecipe) -> PreTrainedModel:
    """Make the untrained model (float32)."""
    shape = SHAPES[recipe.architecture, recipe.size]
    torch.manual_seed(recipe.seed)
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model: PreTrainedModel
    if recipe.architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocabulary,
                hidden_size=shape.width,
                intermediate_size=shape.inner,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.heads,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                **special,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocabulary,
                n_positions=CONTEXT,
                n_embd=shape.width,
                n_inner=shape.inner,
                n_layer=shape.layers,
                n_head=shape.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **special,
            )
        )
    model.set_attn_implementation("eager")
    return model


class PocketLosses(NamedTuple):
    """Losses of one batch.

    Attributes:
        text: Weighted mean loss of predicting each next token, in nats.
        answers: Mean loss of the tokens of answers, in nats.
        stream: Mean square of the residual stream over positions and coordinates, by block.
    """

    text: Tensor
    answers: Tensor
    stream: Tensor


class _Network(nn.Module):
    """The model's own blocks, run with a mask for each half of them."""

    def __init__(self, model: PreTrainedModel, *, compiled: bool) -> None:
        super().__init__()
        self.head: nn.Module = model.get_submodule("lm_head")
        self.is_llama = isinstance(model, LlamaForCausalLM)
        self.core: Any = model.base_model
        blocks = self.core.layers if self.is_llama else self.core.h
        self.run_blocks = [
            torch.compile(block, dynamic=False) if compiled else block for block in blocks
        ]

    def forward(self, batch: Batch, masks: Masks) -> PocketLosses:
        """Run the model and compute the losses."""
        ids, core = batch.ids, self.core
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        if self.is_llama:
            hidden = core.embed_tokens(ids)
            extra = {"position_embeddings": core.rotary_emb(hidden, positions)}
            norm = core.norm
        else:
            hidden, extra, norm = core.wte(ids) + core.wpe(positions), {}, core.ln_f
        half = len(self.run_blocks) // 2
        sizes: list[Tensor] = []
        for index, block in enumerate(self.run_blocks):
            hidden = block(
                hidden, attention_mask=masks.early if index < half else masks.late, **extra
            )
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            sizes.append(hidden.float().square().mean())
        weight = batch.weight[:, 1:].reshape(-1)
        kept = weight > 0
        hidden = norm(hidden)[:, :-1].reshape(-1, hidden.shape[-1])[kept]
        logits = self.head(hidden).float()
        loss = nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1)[kept], reduction="none")
        weight = weight[kept]
        text = (loss * weight).sum() / weight.sum()
        return PocketLosses(text, loss[weight == 1.0].mean(), torch.stack(sizes))


class _Optimizer:
    """Muon for matrices in the blocks, AdamW for the rest, on float32 copies of the weights."""

    def __init__(self, model: PreTrainedModel, recipe: PocketRecipe) -> None:
        self.low = list(model.parameters())
        self.high = [parameter.detach().float().clone() for parameter in self.low]
        named = [name for name, _ in model.named_parameters()]
        matrices = [
            high
            for name, high in zip(named, self.high, strict=True)
            if high.ndim == 2 and (".layers." in name or ".h." in name)
        ]
        chosen = {id(tensor) for tensor in matrices}
        others = [tensor for tensor in self.high if id(tensor) not in chosen]
        self.parts = [
            (
                torch.optim.Muon(
                    matrices,
                    lr=recipe.matrix_rate,
                    weight_decay=0.1,
                    adjust_lr_fn="match_rms_adamw",
                ),
                recipe.matrix_rate,
            ),
            (
                torch.optim.AdamW(
                    others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0
                ),
                recipe.other_rate,
            ),
        ]

    def step(self, scale: float) -> None:
        for high, low in zip(self.high, self.low, strict=True):
            assert low.grad is not None
            high.grad, low.grad = low.grad.float(), None
        nn.utils.clip_grad_norm_(self.high, 1.0)
        for optimizer, rate in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            for high, low in zip(self.high, self.low, strict=True):
                low.copy_(high)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments by name; rates and decay are the recipe's."""
        named = {f"weight/{index}": high for index, high in enumerate(self.high)}
        for part, (optimizer, _) in enumerate(self.parts):
            for index, moments in optimizer.state_dict()["state"].items():
                named |= {f"moment/{part}/{index}/{name}": one for name, one in moments.items()}
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for index, (high, low) in enumerate(zip(self.high, self.low, strict=True)):
                high.copy_(tensors[f"weight/{index}"])
                low.copy_(high)
        for part, (optimizer, _) in enumerate(self.parts):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"moment/{part}/"):
                    _, _, index, kind = name.split("/")
                    moments.setdefault(int(index), {})[kind] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def train(
    recipe: PocketRecipe,
    folder: str | Path,
    *,
    report: Callable[[float, str], None] = lambda done, text: None,
    checkpoint_every: float = 300.0,
) -> Path:
    """Train a pocket model and save it; continues from a checkpoint in the same folder.

    Args:
        recipe: What to train. A checkpoint of another recipe in the folder is an error.
        folder: Where model, tokenizer and `training.json` go.
        report: Called after each step with the share done and a line of figures.
        checkpoint_every: Seconds between checkpoints.

    Returns:
        The folder.

    Raises:
        BadConfig (CG502): the folder holds a checkpoint of another recipe.
    """
    folder = make_folder(folder)
    world = load_world(recipe.size)
    shape = SHAPES[recipe.architecture, recipe.size]
    tokenizer = train_tokenizer(
        world, vocabulary=shape.vocabulary, context=CONTEXT, seed=recipe.seed
    )
    model = build_model(recipe)
    nn.Module.to(model, recipe.device, torch.bfloat16)
    optimizer = _Optimizer(model, recipe)
    network = _Network(model, compiled=recipe.compiled)
    run = _TrainingRun(recipe, folder / "checkpoint.safetensors", optimizer)
    saved_at = time.monotonic()
    while run.progress() < 1.0:
        for packed, masked in _draw_shard(recipe, world, tokenizer, run.step // SHARD):
            started = time.monotonic()
            batch = Batch(*(tensor.to(recipe.device) for tensor in packed))
            masks = attention_masks(batch.owner, masked=masked, dtype=torch.bfloat16)
            losses = network(batch, masks)
            (losses.text + _compute_price(losses.stream, recipe, run.progress())).backward()
            optimizer.step(_scale_rate(run.progress(), run.step))
            run.step += 1
            run.tokens += batch.ids.numel()
            run.seconds += time.monotonic() - started
            report(
                run.progress(),
                f"step {run.step}  answers {losses.answers.item():.3f}  "
                f"loss {losses.text.item():.3f}  stream {losses.stream.mean().item():.1f}  "
                f"{run.tokens / run.seconds:.0f} tokens/s",
            )
            if run.progress() >= 1.0:
                break
        if run.step % SHARD == 0 and time.monotonic() - saved_at > checkpoint_every:
            run.save()
            saved_at = time.monotonic()
    for low, high in zip(optimizer.low, optimizer.high, strict=True):
        low.data = high.to("cpu", torch.float16)
    model.config._attn_implementation = None
    model.config.dtype = torch.float16
    model.generation_config.max_length = CONTEXT
    with temporary_folder(folder / "model") as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for file in sorted(part.iterdir()):
            os.replace(file, folder / file.name)
    record = {
        "recipe": asdict(recipe),
        "steps": run.step,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 1),
        "facts": len(world),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    write_text(folder / "training.json", json.dumps(record, indent=2) + "\n")
    run.path.unlink(missing_ok=True)
    return folder


class _TrainingRun:
    """Progress of a training, and its checkpoint."""

    def __init__(self, recipe: PocketRecipe, path: Path, optimizer: _Optimizer) -> None:
        self.recipe, self.path, self.optimizer = recipe, path, optimizer
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if path.exists():
            with safe_open(path, framework="pt") as file:
                saved = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if saved["recipe"] != asdict(recipe):
                raise BadConfig(
                    "the folder holds a checkpoint of another recipe.",
                    where=str(path),
                    hint="Use the same options to continue it, or another folder.",
                )
            optimizer.load(tensors)
            self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]

    def progress(self) -> float:
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        assert self.recipe.minutes is not None
        return self.seconds / (60.0 * self.recipe.minutes)

    def save(self) -> None:
        run = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        tensors = {name: one.contiguous() for name, one in self.optimizer.tensors().items()}
        write_atomically(self.path, lambda part: save_file(tensors, part, {"run": json.dumps(run)}))


def _scale_rate(done: float, step: int) -> float:
    """Return the learning rate factor: warm-up of 60 steps, constant, linear decay at the end."""
    return min(1.0, (step + 1) / 60) * max(0.02, min(1.0, (1.0 - done) / 0.6))


def _compute_price(stream: Float[Tensor, " layer"], recipe: PocketRecipe, done: float) -> Tensor:
    """Return the price of the residual stream's size after a share `done` of the training."""
    early, late = recipe.stream_price, recipe.late_stream_price
    whole = early + _ramp(done, 0.5, 0.75) * (late - early)
    first = _ramp(done, 0.6, 0.65) * recipe.late_first_price
    return whole * stream.mean() + first * stream[0]


def _ramp(done: float, begin: float, end: float) -> float:
    """Return 0 up to `begin`, 1 from `end` on, linear between."""
    return min(1.0, max(0.0, (done - begin) / (end - begin)))


def _draw_shard(
    recipe: PocketRecipe, world: World, tokenizer: PreTrainedTokenizerFast, number: int
) -> Iterator[tuple[Batch, bool]]:
    """Yield the next `SHARD` batches; an interruption before them changes nothing."""
    draw = random.Random(f"{recipe.seed}/{number}")
    source = mix_documents(world, f"{recipe.seed}/{number}", skill_share=recipe.skill_share)
    short = pack_batches(source, tokenizer, tokens=recipe.batch_tokens, length=recipe.row)
    long = pack_batches(source, tokenizer, tokens=recipe.batch_tokens, length=LONG_ROW)
    for _ in range(SHARD):
        yield next(long if draw.random() < 0.1 else short), draw.random() < recipe.masked_share
