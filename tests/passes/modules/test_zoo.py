"""The module form of torchvision's models and of a transformer library's, small or untrained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnas import SuperNetwork
from bnas.passes import Elasticity, Subnet
from bnas.passes.errors import ModuleFormError
from bnas.passes.modules.trial import difference

FINE = Elasticity(width_multipliers=(1.0, 0.75, 0.5), min_width=1, divisor=1)
ROUNDED = 1e-4
"""Allowed in single precision."""


def chosen(supernet: SuperNetwork) -> list[Subnet]:
    minimal, generator = supernet.space.minimal(), np.random.default_rng(0)
    return [minimal, replace(minimal, skipped=frozenset()), supernet.space.sample(generator)]


def assert_are_graphs(model: nn.Module, inputs: Any, settings: Elasticity | None = None) -> SuperNetwork:
    supernet = SuperNetwork.from_model(model, inputs, settings)
    for subnet in chosen(supernet):
        made, graph = supernet.extract(subnet, form="module"), supernet.extract(subnet)
        with torch.no_grad():
            error, place = difference(made(inputs), graph(inputs))
        assert error <= ROUNDED, place
        assert type(made) is type(model)
        assert set(graph.state_dict()) - set(supernet.ir.constants) <= set(made.state_dict()) <= set(model.state_dict())
    return supernet


# Images -------------------------------------------------------------------------------------------------------------


def vit(models: Any) -> nn.Module:
    made = models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    nn.init.normal_(made.heads.head.weight)  # zeros at first, in which mistakes would vanish
    return made


SMALL: dict[str, Callable[[Any], nn.Module]] = {
    "resnet": lambda models: models.ResNet(models.resnet.BasicBlock, [1, 2, 1, 1], num_classes=10),
    "bottleneck": lambda models: models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=10),
    "mobilenet_v3": lambda models: models.mobilenet_v3_small(num_classes=10),
    "convnext": lambda models: models.ConvNeXt(
        [models.convnext.CNBlockConfig(16, 32, 2), models.convnext.CNBlockConfig(32, None, 2)], num_classes=10
    ),
    "densenet": lambda models: models.DenseNet(8, (2, 2), 16, num_classes=10),
    "vit": vit,
}


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    assert_are_graphs(SMALL[name](models).eval(), torch.randn(2, 3, 32, 32), FINE)


def swin(models: Any) -> nn.Module:
    return models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10).eval()


def test_swin_is_itself_where_heads_and_channels_agree() -> None:
    models = pytest.importorskip("torchvision").models
    settings = Elasticity(target_scopes=("features.*.mlp*",))
    assert_are_graphs(swin(models), torch.randn(2, 3, 32, 32), settings)
    supernet = SuperNetwork.from_model(swin(models), torch.randn(2, 3, 32, 32), FINE)
    minimal = replace(supernet.space.minimal(), skipped=frozenset())
    halves = supernet.extract(minimal, form="module")  # of all channels and all heads
    assert [m.num_heads for m in halves.modules() if hasattr(m, "num_heads")] == [1, 1, 2, 2]
    full = supernet.space.maximal()
    heads = next(name for name in full.widths if name.endswith("attn.qkv"))
    with pytest.raises(ModuleFormError, match=r"ShiftedWindowAttention.*swin_transformer\.py:\d+: qkv = qkv\.reshape"):
        supernet.extract(replace(full, widths={**full.widths, heads: 1}), form="module")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small"),
        *("mobilenet_v3_large", "convnext_tiny", "convnext_small", "regnet_y_400mf", "regnet_x_400mf", "densenet121"),
        *("densenet169", "efficientnet_b0", "vgg11_bn", "squeezenet1_1", "mnasnet1_0", "vit_b_16"),
    ],
)
def test_models_of_torchvision(name: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    zoo = pytest.importorskip("zoo_models")
    model, images = zoo.make_model(name), zoo.run_input(name)
    zoo.enliven(model, images)
    assert_are_graphs(model, images)


# Text ---------------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
INNER = {"intermediate_size": 40}
TEXT = {
    "BertForSequenceClassification": INNER,
    "RobertaForSequenceClassification": INNER,
    "ElectraForSequenceClassification": INNER | {"embedding_size": 12},
    "DistilBertForSequenceClassification": {"hidden_dim": 40},
    "LlamaForCausalLM": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8},
        **{"num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": False},
    },
}


def text(name: str) -> tuple[nn.Module, torch.Tensor]:
    library = pytest.importorskip("transformers")
    kind = getattr(library, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**SIZES | TEXT[name])).eval(), torch.randint(3, 50, (2, 9))


@pytest.mark.parametrize("name", TEXT)
def test_text_models(name: str) -> None:
    model, ids = text(name)
    assert_are_graphs(model, ids, FINE)


@pytest.mark.parametrize("name", TEXT)
def test_text_models_are_saved_where_the_configuration_holds_their_sizes(name: str, tmp_path: Path) -> None:
    model, ids = text(name)
    supernet = SuperNetwork.from_model(model, ids, FINE)
    subnet = replace(supernet.space.minimal(), skipped=frozenset())
    made: Any = supernet.extract(subnet, form="module")
    assert 2 * made.config.hidden_size == supernet.model.config.hidden_size
    made.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, made(ids).logits)


def test_a_language_model_generates() -> None:
    model, ids = text("LlamaForCausalLM")
    supernet = SuperNetwork.from_model(model, ids, FINE)
    made: Any = supernet.extract(replace(supernet.space.minimal(), skipped=frozenset()), form="module")
    graph = supernet.extract(replace(supernet.space.minimal(), skipped=frozenset()))
    found = made.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert found.shape[1] > 9
    with torch.no_grad():
        assert torch.equal(found[:, 9], graph(ids).logits[:, -1].argmax(-1))
