"""What people use today, from well-kept libraries: full fine-tuning and the adapters of peft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeoff import lm
from bakeoff.errors import Unsupported, UsageError
from bakeoff.method import Range
from bakeoff.training.batches import derived_seed
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

LearningRate = Annotated[float, Range(1e-6, 1e-1, log=True)]
Rank = Annotated[int, Range(1, 256, log=True)]


@tune.method(source="the usual practice", changes="weights")
def full(model, data: TuneData, run: Run, *, learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4):  # type: ignore[no-untyped-def]
    """Every weight learns.

    Args: learning_rate: peak of AdamW's, after a warm-up over 5% of the budget and before a linear decay to 0.
    """
    return run.train(lm.clone(model), data.batches(run), learning_rate=learning_rate)


@tune.method(source="Hu et al. 2021, arXiv:2106.09685, section 4.1; peft", changes="weights")
def lora(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    rank: Rank = 8,
    alpha: int = 0,
    learning_rate: LearningRate = 2e-3,
    merge: bool = True,
) -> nn.Module:
    """Beside every linear layer but the head learns a product of two thin matrices; the weights themselves stay.

    W x + (alpha / rank) B A x,  A [rank, in_features] random, B [out_features, rank] zero at the start

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    Args: rank: of the product. alpha: its scale; 0 means twice the rank. merge: return an ordinary model, with the
        product added to the weights; otherwise a PeftModel, which saves the adapter alone.
    Departures: every linear layer has an adapter, where the paper's experiments adapt queries and values only.
    """
    adapted = _adapted(_frozen(model), _lora_config(model, rank, alpha or 2 * rank), run)
    return _finished(run.train(adapted, data.batches(run), learning_rate=learning_rate), merge)


@tune.method(source="Liu et al. 2024, arXiv:2402.09353, section 4.1; peft", changes="weights")
def dora(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    rank: Rank = 8,
    alpha: int = 0,
    learning_rate: LearningRate = 2e-3,
    merge: bool = True,
) -> nn.Module:
    """LoRA on the direction of each output's weights, while their length learns on its own.

    m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|,  lengths over in_features, one m for each output

    Source: Liu et al. 2024, arXiv:2402.09353, section 4.1; the length in the denominator has no gradient (section 4.3).
    Args: as of lora.
    Departures: every linear layer but the head is adapted.
    """
    adapted = _adapted(_frozen(model), _lora_config(model, rank, alpha or 2 * rank, use_dora=True), run)
    return _finished(run.train(adapted, data.batches(run), learning_rate=learning_rate), merge)


@tune.method(
    source="Liu et al. 2022, arXiv:2205.05638, section 3.3; peft",
    changes="weights",
    departures="Where one projection makes queries, keys and values, all three are scaled. Trained by cross-entropy.",
)
def ia3(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    learning_rate: LearningRate = 2e-2,
    merge: bool = True,
) -> nn.Module:
    """One factor learns for every key, every value and every inner activation of the MLP; the weights stay.

    Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
    Args: merge: as of lora; the factors then scale rows and columns of the weights.
    Departures: where one projection makes queries, keys and values (GPT-2, GPT-NeoX), all three are scaled. Trained by
        cross-entropy alone.
    """
    from peft import IA3Config

    blocks = lm.anatomy(model).blocks
    inner = [block.down.path for block in blocks]
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=sorted({part.path for block in blocks for part in (block.k, block.v)}) + inner,
        feedforward_modules=inner,
        fan_in_fan_out=_transposed(model),
    )
    adapted = _adapted(_frozen(model), config, run)
    return _finished(run.train(adapted, data.batches(run), learning_rate=learning_rate), merge)


@tune.method(
    paper="corda",
    source="Yang et al. 2024, arXiv:2406.05223, sections 3.2 and 3.3; peft",
    changes="weights",
    departures="Rows are read one by one and each layer's inputs scaled by the row's greatest, as peft does.",
)
def corda(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    mode: Literal["ipm", "kpm"] = "ipm",
    rank: Rank = 8,
    alpha: int = 0,
    samples: Annotated[int, Range(1, 4096, log=True, search=False)] = 256,
    learning_rate: LearningRate = 1e-3,
    merge: bool = True,
) -> nn.Module:
    """LoRA that starts from a part of each weight, chosen by what the layer's inputs look like; the rest stays.

    U S V^T = svd(W C),  C the covariance of the layer's inputs
    B = U sqrt(S),  A = sqrt(S) V^T C^-1,  `rank` components of them;  W - B A is what stays

    Source: Yang et al. 2024, arXiv:2406.05223, sections 3.2 and 3.3.
    Args: mode: "ipm" (instruction-previewed) lets the largest components on training text learn; "kpm" (knowledge-
        preserved) the smallest on the keep set. alpha: scale of the product; 0 means the rank. samples: rows that are
        read for C, at most. merge: as of lora; otherwise the adapter has twice the rank and fits the original weights.
    Departures: rows are read one by one, and each layer's inputs scaled by the row's greatest, as peft does.
    Limits: rank must not exceed the narrowest linear layer. In bfloat16 what stays is rounded.
    """
    from peft import PeftModel
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    batches = data.batches(run) if mode == "ipm" else data.keep_batches(run, "corda(mode='kpm')")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    narrowest = min(min(layer.weight.shape) for layer in layers.values())
    if rank > narrowest:
        raise UsageError(f"corda: rank {rank} exceeds this model's narrowest linear layer: give at most {narrowest}.")
    base = _frozen(model)
    config = _lora_config(
        model, rank, alpha or rank, init_lora_weights="corda", corda_config=CordaConfig(corda_method=mode),
        target_modules=list(layers),
    )  # fmt: skip
    rows = batches.draw(0, min(samples, len(batches.items)))

    def read() -> None:
        for row in rows:
            base(input_ids=row.input_ids[None].to(run.device), use_cache=False)
            run.meter.forward_tokens += len(row.input_ids)

    preprocess_corda(base, config, read)
    adapted = _adapted(base, config, run)
    if merge:
        return _finished(run.train(adapted, data.batches(run), learning_rate=learning_rate), merge)
    # The adapter fits what stays of the weights; peft turns it into one that fits the weights, by way of two folders.
    initial, final = str(run.folder / "corda-initial"), str(run.folder / "corda")
    config.init_lora_weights, config.corda_config = True, None
    adapted.save_pretrained(initial, save_embedding_layers=False)
    run.train(adapted, data.batches(run), learning_rate=learning_rate)
    adapted.save_pretrained(final, save_embedding_layers=False, path_initial_model_for_weight_conversion=initial)
    return PeftModel.from_pretrained(_frozen(model), final).eval()


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights are those of the model, in the same memory."""
    if hasattr(model, "peft_config"):
        raise Unsupported("This model already has an adapter: merge it with merge_and_unload(), save it and give that.")
    return lm.clone(model, learning=())  # type: ignore[no-any-return]


def _lora_config(model: PreTrainedModel, rank: int, alpha: int, **options: Any) -> LoraConfig:
    from peft import LoraConfig

    options = {"target_modules": "all-linear", **options}
    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0, fan_in_fan_out=_transposed(model), **options
    )


def _transposed(model: PreTrainedModel) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


def _adapted(base: PreTrainedModel, config: PeftConfig, run: Run) -> PeftModel:
    """The base with adapters in it, whose random weights follow from the trial's seed."""
    from peft import get_peft_model

    name = base.name_or_path
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(run.seed, "adapter"))
        adapted = get_peft_model(base, config)
    # Without a name peft asks the hub for the base; a relative path would be lost with the working directory.
    config.base_model_name_or_path = str(Path(name).resolve()) if name and Path(name).is_dir() else name or None
    return adapted


def _finished(adapted: Any, merge: bool) -> nn.Module:
    # A safe merge makes new tensors; the other kind would write into those shared with the input.
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(True) if merge else adapted  # type: ignore[no-any-return]
