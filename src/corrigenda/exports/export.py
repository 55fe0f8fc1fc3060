"""Export of a patch in any form: composed, checked, measured and described."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from corrigenda.assessment import assess, list_facts
from corrigenda.errors import BadConfig, NotExportable, QuantisedWeights
from corrigenda.exports.card import FormCard, write_card
from corrigenda.exports.forms import Form
from corrigenda.exports.gguf_adapter import export_gguf_adapter
from corrigenda.exports.gguf_model import export_gguf
from corrigenda.exports.gguf_types import WeightType
from corrigenda.exports.merged import export_merged
from corrigenda.exports.peft import export_peft
from corrigenda.exports.restore import save_originals
from corrigenda.exports.shrink import shrink
from corrigenda.files import make_folder
from corrigenda.lm.wrapping import require_lm
from corrigenda.patch.protocols import Patch
from corrigenda.patch.weights import WeightPatch
from corrigenda.settings import parse_choice

if TYPE_CHECKING:
    from corrigenda.assessment import Assessment
    from corrigenda.lm.model import LanguageModel

_MOST_FACTS = 16


class _Options(NamedTuple):
    base: Path | None
    weight_type: WeightType | None
    padded: bool
    force: bool


def export(
    patch: Patch | Sequence[Patch],
    lm: LanguageModel,
    path: str | Path,
    *,
    to: Form | str = Form.PEFT,
    base: str | Path | None = None,
    weight_type: WeightType | str | None = None,
    padded: bool = True,
    force: bool = False,
    assessment: Assessment | None = None,
) -> None:
    """Write a patch in a form that another program reads, with a card.

    The card (`README.md`, and `card.json` for programs) names the facts with their answers before
    and after, the base model, the method, and how to load the form and to take it back. A dense
    change goes into an adapter at the smallest rank that keeps what the patch makes true; what is
    lost is warned of and stands on the card.

    Args:
        patch: The patch, or several, which are composed in this order.
        lm: The model it was made on, without it.
        path: A folder; for GGUF also a file that ends in `.gguf`, beside which the card lies.
        to: `peft`, `gguf-adapter`, `gguf` or `merged`. A merged folder also keeps the patch and the
            original tensors, for `restore_merged`.
        base: For GGUF: a file of the unedited model, against which an adapter is checked, and from
            which a merged file takes every tensor that does not change, bit for bit.
        weight_type: For `gguf`: type of the matrices, `f16` (the default), `q8_0`, `q4_0` and more;
            with `base`, of those that change, whose own type is the default.
        padded: For `peft`: one rank for all modules, as vLLM and SGLang want it.
        force: Use the patch on a model other than the one it was made on; nothing is asked then.
        assessment: What was measured of the patch, for the card; by default its first facts are
            asked.

    Raises:
        NotExportable (CG405): the patch has no such form.
        QuantisedWeights (CG304): `gguf` or `merged` of a quantised model.
        BadConfig (CG502): no such form, or options that it does not have.
        WrongBase (CG401): the patch was made on another model, and not `force`; or `base` is.
        CorruptFile (CG402): `base` cannot be read.
        MissingExtra (CG504): GGUF without the package `gguf`.
        WriteFailed (CG601): the place cannot be written.
    """
    lm = require_lm(lm)
    form = parse_choice(Form, to)
    options = _check_options(form, base, weight_type, padded=padded, force=force)
    whole = _compose(patch)
    if lm.is_quantised and form in (Form.MERGED, Form.GGUF):
        raise QuantisedWeights(
            f"a patch cannot be merged into quantised weights, so there is no {form} form of it.",
            where=lm.name,
            hint="Export an adapter (peft, gguf-adapter), which runs beside them, or load the "
            "model unquantised, edit and export that, and quantise afterwards.",
        )
    # Another model is refused before anything is written.
    whole.apply(lm, force=force).revert()
    lost: tuple[str, ...] = ()
    if form in (Form.PEFT, Form.GGUF_ADAPTER):
        whole, lost = shrink(whole, lm)
    if assessment is None and whole.header.facts and not force:
        assessment = assess(lm, whole, list_facts(whole)[:_MOST_FACTS])
    file, notices = _write(form, whole, lm, Path(path), options)
    for line in (*lost, *notices):
        warnings.warn(line, stacklevel=2)
    card = FormCard(form, whole, lm, file, options.base, assessment, (*lost, *notices))
    write_card(card)


def _check_options(
    form: Form,
    base: str | Path | None,
    weight_type: WeightType | str | None,
    *,
    padded: bool,
    force: bool,
) -> _Options:
    if base is not None and form not in (Form.GGUF, Form.GGUF_ADAPTER):
        raise BadConfig(f"the form {form} takes no GGUF file as base.")
    if weight_type is not None and form is not Form.GGUF:
        raise BadConfig(f"the form {form} has no type of weights to choose.")
    if not padded and form is not Form.PEFT:
        raise BadConfig(f"only the form {Form.PEFT} has ranks to pad.")
    kind = None if weight_type is None else parse_choice(WeightType, weight_type)
    return _Options(None if base is None else Path(base), kind, padded, force)


def _compose(patch: Patch | Sequence[Patch]) -> WeightPatch:
    """Return one patch of weights, and refuse what has no weights."""
    whole: WeightPatch | None = None
    for one in patch if isinstance(patch, Sequence) else [patch]:
        if not isinstance(one, WeightPatch):
            raise NotExportable(
                f"this {one.header.method} patch is no change of weights alone, so neither an "
                "adapter nor a checkpoint can hold it.",
                hint="Serve it with the model: corrigenda serve MODEL --patch FILE.",
            )
        whole = one if whole is None else whole + one
    if whole is None or whole.is_empty:
        raise NotExportable("an empty patch changes nothing, so there is nothing to export.")
    return whole


def _write(
    form: Form, patch: WeightPatch, lm: LanguageModel, path: Path, options: _Options
) -> tuple[Path, tuple[str, ...]]:
    """Write one form; return the file or folder, and notices."""
    if form is Form.GGUF:
        with_force = _on_this_model(patch, lm) if options.force else patch
        written = export_gguf(
            with_force,
            lm,
            _name_file(path, "model"),
            base=options.base,
            weight_type=options.weight_type,
        )
        return written.path, written.notices
    if form is Form.MERGED:
        save_originals(path, patch, lm)
    with patch.apply(lm, force=options.force):
        if form is Form.MERGED:
            return export_merged(patch, lm, path), ()
        if form is Form.PEFT:
            return export_peft(patch, lm, path, padded=options.padded), ()
    with_force = _on_this_model(patch, lm) if options.force else patch
    file = _name_file(path, "adapter")
    return export_gguf_adapter(with_force, lm, file, base=options.base), ()


def _on_this_model(patch: WeightPatch, lm: LanguageModel) -> WeightPatch:
    """Return the same changes as a patch of this model."""
    header = patch.header.model_copy(update={"base_digest": lm.digest(), "prerequisites": ()})
    return WeightPatch(patch.changes, header)


def _name_file(path: Path, name: str) -> Path:
    return path if path.suffix == ".gguf" else make_folder(path) / f"{name}.gguf"
