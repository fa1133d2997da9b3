"""Models of other libraries and tasks, small and with random weights: name, library, task, model and inputs.

What they need, as it was run last::

    pip install timm==1.0.31 transformers==5.24.0 diffusers==0.42.1 segmentation-models-pytorch==0.6.0

Nothing is downloaded: models are built from configuration classes and without weights. A model whose library is missing
is left out, with that reason.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import zoo_other_hand as hand
from torch import Tensor, nn

Maker = Callable[[], nn.Module]
Feed = Callable[[int, bool], Any]
"""Inputs of a batch size, of the example's other sizes or of others."""
BATCH = 2


@dataclass(frozen=True)
class Entry:
    """A model with the inputs that it is captured and tried with."""

    name: str
    library: str
    task: str
    model: Maker
    feed: Feed
    other: bool = True
    """Whether the model itself takes inputs of other sizes than the example's."""
    batched: bool = True
    """Whether axis 0 of all inputs is a batch that may be larger."""
    dynamic: str = ""
    """The axes beside the batch that inputs may have in other sizes, for people to read."""

    def make(self) -> tuple[nn.Module, Any]:
        """The model in evaluation mode, and example inputs: a tensor, a tuple or a dict of keyword inputs."""
        return self.build(), self.inputs()

    def make_other(self) -> Any:
        """Inputs of other sizes, or None where the model itself takes none."""
        return self.inputs(other=True) if self.other else None

    def build(self) -> nn.Module:
        """The model, the same each time: no dropout, no tensor of one value only, in which mistakes would vanish."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self.model()
        without_dropout(model)
        enliven(model)
        if self.library == "timm":
            settle(model, self.inputs(8))
        return model.eval()

    def inputs(self, batch: int = BATCH, other: bool = False) -> Any:
        """Random inputs, the same each time."""
        torch.manual_seed(1)
        return self.feed(batch, other)


def without_dropout(model: nn.Module) -> None:
    """Set all probabilities of dropping to 0, in modules and in the configurations that they read."""
    for holder in [*model.modules(), *(m.config for m in model.modules() if hasattr(m, "config"))]:
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            drops = "drop" in name or (name == "p" and isinstance(holder, nn.modules.dropout._DropoutNd))
            if isinstance(value, float) and drops:
                setattr(holder, name, 0.0)


def enliven(model: nn.Module) -> None:
    """Give random values to all parameters that have one value only, and statistics to norms."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)


def settle(model: nn.Module, images: Tensor) -> None:
    """Give the norms of a model for images the statistics of a batch: without them signals grow from layer to layer."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


ENTRIES: dict[str, Entry] = {}


def add(name: str, library: str, task: str, model: Maker, feed: Feed, **settings: Any) -> None:
    """Put a model into the zoo."""
    if name in ENTRIES:
        raise ValueError(f"{name} is in the zoo already")
    ENTRIES[name] = Entry(name, library, task, model, feed, **settings)


def _images(side: int, other: int, channels: int = 3) -> Feed:
    return lambda batch, more: torch.randn(batch, channels, *2 * (other if more else side,))


def _timm(name: str, side: int = 64, other: int = 0, **settings: Any) -> None:
    def make() -> nn.Module:
        return importlib.import_module("timm").create_model(name, pretrained=False, num_classes=10, **settings)

    feed = _images(side, other or side)
    add(f"timm-{name}", "timm", "images", make, feed, other=bool(other), dynamic="height, width" if other else "")


def _timm_models() -> None:
    for name in ("resnet", "byobnet", "efficientnet", "efficientnet_gn", "efficientnet_evos", "convnext", "convnext2"):
        _timm(f"test_{name}", 64, 96)
    for name in ("nfnet", "mambaout"):
        _timm(f"test_{name}", 64, 96)
    _timm("test_vit", 64, img_size=64)
    _timm("test_vit3", 64, img_size=64)
    for name in ("regnetx_002", "mobileone_s0", "repvgg_a0", "dla46_c", "ese_vovnet19b_dw", "ghostnet_050"):
        _timm(name, 64, 96)
    _timm("hrnet_w18_small", 64, 96)
    for name in ("edgenext_xx_small", "fastvit_t8", "mobilevit_xxs", "repvit_m0_9", "pvt_v2_b0"):
        _timm(name, 64, 96)
    _timm("efficientformer_l1", 224)
    _timm("levit_128s", 224, depth=(1, 1, 1))
    _timm("tiny_vit_5m_224", 64, 96, depths=(1, 1, 2, 1))
    swin = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    _timm("swin_tiny_patch4_window7_224", 64, img_size=64, **swin)
    _timm("swinv2_tiny_window8_256", 64, img_size=64, **swin)
    _timm("maxvit_pico_rw_256", 64, img_size=64, depths=(1, 1), embed_dim=(32, 64))
    _timm("coatnet_nano_rw_224", 64, img_size=64, depths=(1, 1, 2, 1), embed_dim=(32, 32, 64, 64))
    _timm("xcit_nano_12_p16_224", 64, 96, embed_dim=32, depth=2, num_heads=4)
    small = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4}
    for name in ("beit_base_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224"):
        _timm(name, 64, **small)
    _timm("eva02_tiny_patch14_224", 56, img_size=56, embed_dim=48, depth=2, num_heads=4)
    _timm("vit_relpos_small_patch16_224", 64, **small)
    for name in ("mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224"):
        _timm(name, 64, img_size=64)
    _timm("poolformer_s12", 64, 96)
    _timm("convit_tiny", 64, img_size=64, embed_dim=48, depth=2, num_heads=4)
    _timm("cait_xxs24_224", 64, **small)
    _timm("sequencer2d_s", 64, layers=(1, 1, 1, 1), embed_dims=(24, 48, 48, 48), hidden_sizes=(6, 12, 12, 12))
    for name in ("res2net50_14w_8s", "resnest14d", "skresnet18", "densenet121", "mobilenetv4_conv_small_035"):
        _timm(name, 64, 96)


def _hf(config: str, model: str, **settings: Any) -> Maker:
    def make() -> nn.Module:
        library: Any = importlib.import_module("transformers")
        return getattr(library, model)(getattr(library, config)(**settings))

    return make


def _tokens(batch: int, more: bool) -> dict[str, Tensor]:
    length = 24 if more else 16
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -3:] = 0
    return {"input_ids": torch.randint(5, 90, (batch, length)), "attention_mask": mask}


def _tokens_pair(batch: int, more: bool) -> dict[str, Tensor]:
    return _tokens(batch, more) | {"decoder_input_ids": torch.randint(5, 90, (batch, 10 if more else 7))}


def _ids(batch: int, more: bool) -> dict[str, Tensor]:
    return {"input_ids": _tokens(batch, more)["input_ids"]}


SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"vocab_size": 99, "max_position_embeddings": 64},
}


def _text(name: str, config: str, model: str, feed: Feed = _tokens, **settings: Any) -> None:
    add(f"hf-{name}", "transformers", "text", _hf(config, model, **settings), feed, dynamic="length")


def _text_models() -> None:
    for name, kind in (("bert", "Bert"), ("roberta", "Roberta"), ("electra", "Electra"), ("mpnet", "MPNet")):
        _text(name, f"{kind}Config", f"{kind}ForSequenceClassification", **SMALL)
    _text("albert", "AlbertConfig", "AlbertForSequenceClassification", embedding_size=16, **SMALL)
    _text("deberta", "DebertaConfig", "DebertaModel", **SMALL)
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    _text("deberta-v2", "DebertaV2Config", "DebertaV2Model", **SMALL, **relative)
    _text("bert-mlm", "BertConfig", "BertForMaskedLM", **SMALL)
    sizes = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    _text("distilbert", "DistilBertConfig", "DistilBertForSequenceClassification", **sizes)
    gpt = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    _text("gpt2", "GPT2Config", "GPT2LMHeadModel", use_cache=False, **gpt)
    for name, kind in (("gpt-neox", "GPTNeoX"), ("phi", "Phi")):
        _text(name, f"{kind}Config", f"{kind}ForCausalLM", use_cache=False, **SMALL)
    grouped = {**SMALL, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
    for name, kind in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("phi3", "Phi3")):
        _text(name, f"{kind}Config", f"{kind}ForCausalLM", **grouped)
    _text("qwen3", "Qwen3Config", "Qwen3ForCausalLM", head_dim=8, **grouped)
    _text("gemma", "GemmaConfig", "GemmaForCausalLM", head_dim=8, **grouped)
    _text("mixtral", "MixtralConfig", "MixtralForCausalLM", num_local_experts=4, **grouped)
    falcon = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    _text("falcon", "FalconConfig", "FalconForCausalLM", use_cache=False, **falcon)
    bloom = {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
    _text("bloom", "BloomConfig", "BloomForCausalLM", **bloom)
    opt = {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}
    _text("opt", "OPTConfig", "OPTForCausalLM", **opt)
    t5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False}
    _text("t5", "T5Config", "T5ForConditionalGeneration", _tokens_pair, **t5)
    bart = {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "use_cache": False}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    _text("bart", "BartConfig", "BartModel", _tokens_pair, **bart, **heads)
    xlnet = {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
    _text("xlnet", "XLNetConfig", "XLNetModel", use_mems_eval=False, use_mems_train=False, **xlnet)
    mamba = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}
    _text("mamba", "MambaConfig", "MambaForCausalLM", _ids, **mamba)


def _wave(batch: int, more: bool) -> Tensor:
    return torch.randn(batch, 2400 if more else 1600)


def _speech_models() -> None:
    convs = {"conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8), "mask_time_prob": 0.0}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    groups = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2}
    for name, kind in (("wav2vec2", "Wav2Vec2"), ("hubert", "Hubert")):
        make = _hf(f"{kind}Config", f"{kind}Model", **convs, **sizes, **groups)
        add(f"hf-{name}", "transformers", "speech", make, _wave, dynamic="length")
    whisper = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_source_positions": 20, "vocab_size": 99}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False}

    def heard(batch: int, more: bool) -> dict[str, Tensor]:
        ids = torch.randint(5, 90, (batch, 9 if more else 6))
        return {"input_features": torch.randn(batch, 80, 40), "decoder_input_ids": ids}

    make = _hf("WhisperConfig", "WhisperModel", **whisper, **heads, **tokens)
    add("hf-whisper", "transformers", "speech", make, heard, dynamic="decoder length")
    ast = {"max_length": 64, "num_mel_bins": 32, "patch_size": 16, "frequency_stride": 16, "time_stride": 16}
    make = _hf("ASTConfig", "ASTForAudioClassification", **sizes, **ast)
    add("hf-ast", "transformers", "speech", make, lambda batch, _: torch.randn(batch, 64, 32), other=False)


def _vision(name: str, kind: str, model: str, other: int = 0, **settings: Any) -> None:
    def feed(batch: int, more: bool) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(batch, 3, *2 * (other if more else 64,))}

    make = _hf(f"{kind}Config", f"{kind}{model}", **settings)
    dynamic = "height, width" if other else ""
    add(f"hf-{name}", "transformers", "vision", make, feed, other=bool(other), dynamic=dynamic)


def _vision_models() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    patches = {"image_size": 64, "patch_size": 16}
    _vision("vit", "ViT", "ForImageClassification", **sizes, **patches)
    _vision("deit", "DeiT", "ForImageClassification", **sizes, **patches)
    _vision("beit", "Beit", "ForImageClassification", **sizes, **patches, use_relative_position_bias=True)
    _vision("dinov2", "Dinov2", "ForImageClassification", 96, **sizes, **patches)
    swin = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    _vision("swin", "Swin", "ForImageClassification", **swin)
    mit = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    _vision("segformer", "Segformer", "ForSemanticSegmentation", 96, **mit, decoder_hidden_size=32)
    mobile = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "image_size": 64}
    _vision("mobilevit", "MobileViT", "ForImageClassification", 96, **mobile, num_attention_heads=2)
    resnet = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    _vision("resnet", "ResNet", "ForImageClassification", 96, **resnet, layer_type="bottleneck")
    _vision("convnext", "ConvNext", "ForImageClassification", 96, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1])

    def detr() -> nn.Module:
        library: Any = importlib.import_module("transformers")
        backbone = library.ResNetConfig(**resnet, layer_type="basic", out_features=["stage4"])
        narrow = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_queries": 6, "num_labels": 4}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        config = library.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, **narrow, **heads, **wide
        )
        return library.DetrForObjectDetection(config)

    def pixels(batch: int, more: bool) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(batch, 3, *2 * (96 if more else 64,))}

    add("hf-detr", "transformers", "detection", detr, pixels, dynamic="height, width")

    def clip() -> nn.Module:
        library: Any = importlib.import_module("transformers")
        text = {**SMALL, "projection_dim": 16, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 1}
        config = library.CLIPConfig(text_config=text, vision_config={**sizes, **patches}, projection_dim=16)
        return library.CLIPModel(config)

    def pair(batch: int, more: bool) -> dict[str, Tensor]:
        return _tokens(batch, more) | {"pixel_values": torch.randn(batch, 3, 64, 64)}

    add("hf-clip", "transformers", "vision and text", clip, pair, dynamic="length")


def _diffusers(name: str, **settings: Any) -> Maker:
    return lambda: getattr(importlib.import_module("diffusers"), name)(**settings)


def _noisy(side: int, other: int, channels: int, condition: int = 0) -> Feed:
    def feed(batch: int, more: bool) -> dict[str, Tensor]:
        image = torch.randn(batch, channels, *2 * (other if more else side,))
        given = {"sample": image, "timestep": torch.randint(0, 999, (batch,))}
        return given | ({"encoder_hidden_states": torch.randn(batch, 5, condition)} if condition else {})

    return feed


def _diffusion_models() -> None:
    unet = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    downs = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    make = _diffusers("UNet2DModel", **unet, **downs, attention_head_dim=8)
    add("diffusers-unet2d", "diffusers", "diffusion", make, _noisy(16, 24, 3), dynamic="height, width")
    crossed = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    make = _diffusers("UNet2DConditionModel", **unet, **crossed, cross_attention_dim=24, attention_head_dim=4)
    add("diffusers-unet2d-condition", "diffusers", "diffusion", make, _noisy(16, 24, 4, 24), dynamic="height, width")
    vae = {"block_out_channels": (16, 32), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": 2 * ("DownEncoderBlock2D",), "up_block_types": 2 * ("UpDecoderBlock2D",)}
    make = _diffusers("AutoencoderKL", **vae, **blocks)
    add("diffusers-vae", "diffusers", "diffusion", make, _images(32, 48), dynamic="height, width")
    dit = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4}
    make = _diffusers("DiTTransformer2DModel", **dit, num_embeds_ada_norm=10, norm_num_groups=4)

    def labelled(batch: int, _: bool) -> dict[str, Tensor]:
        image = torch.randn(batch, 4, 8, 8)
        named = {"timestep": torch.randint(0, 999, (batch,)), "class_labels": torch.randint(0, 9, (batch,))}
        return {"hidden_states": image, **named}

    add("diffusers-dit", "diffusers", "diffusion", make, labelled, other=False)


def _segmentation_models() -> None:
    def smp(kind: str, **settings: Any) -> Maker:
        def make() -> nn.Module:
            library = importlib.import_module("segmentation_models_pytorch")
            return getattr(library, kind)("resnet18", encoder_weights=None, classes=4, **settings)

        return make

    narrow: dict[str, dict[str, Any]] = {
        "Unet": {"decoder_channels": (64, 32, 32, 16, 16)},
        "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
        "DeepLabV3Plus": {"decoder_channels": 32},
    }
    for kind, settings in narrow.items():
        make = smp(kind, **settings)
        add(f"smp-{kind.lower()}", "segmentation_models_pytorch", "segmentation", make, _images(64, 96))

    def lraspp() -> nn.Module:
        library: Any = importlib.import_module("torchvision.models.segmentation")
        return library.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)

    add("tv-lraspp", "torchvision", "segmentation", lraspp, _images(64, 96), dynamic="height, width")


def _detection_models() -> None:
    def make(name: str, **settings: Any) -> Maker:
        def detector() -> nn.Module:
            library: Any = importlib.import_module("torchvision.models.detection")
            return getattr(library, name)(weights=None, weights_backbone=None, num_classes=4, **settings)

        return detector

    def listed(batch: int, more: bool) -> tuple[list[Tensor]]:
        return ([torch.rand(3, *2 * (96 if more else 64,)) for _ in range(batch)],)

    small = {"min_size": 64, "max_size": 96}
    lists: dict[str, Any] = {"batched": False, "dynamic": "height, width of every image"}
    retinanet = make("retinanet_resnet50_fpn", score_thresh=0.01, **small)
    faster = make("fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.01, **small)
    ssdlite = make("ssdlite320_mobilenet_v3_large", score_thresh=0.01)
    add("tv-retinanet", "torchvision", "detection", retinanet, listed, **lists)
    add("tv-fasterrcnn", "torchvision", "detection", faster, listed, **lists)
    add("tv-ssdlite", "torchvision", "detection", ssdlite, listed, **lists)
    add("hand-yolo", "by hand", "detection", hand.YoloLike, _images(64, 96), dynamic="height, width")


def _video_models() -> None:
    def make(name: str, **settings: Any) -> Maker:
        library = "torchvision.models.video"
        return lambda: getattr(importlib.import_module(library), name)(weights=None, num_classes=4, **settings)

    def clips(batch: int, more: bool) -> Tensor:
        return torch.randn(batch, 3, 8, *2 * (48 if more else 32,))

    def clips_224(batch: int, _: bool) -> Tensor:
        return torch.randn(batch, 3, 16, 224, 224)

    add("tv-r3d", "torchvision", "video", make("r3d_18"), clips, dynamic="height, width")
    add("tv-s3d", "torchvision", "video", make("s3d"), clips_224, other=False)

    def mvit() -> nn.Module:
        library: Any = importlib.import_module("torchvision.models.video.mvit")
        block = library.MSBlockConfig
        blocks = [
            block(2, 32, 32, [3, 3, 3], [1, 4, 4], [1, 1, 1], [3, 3, 3]),
            block(4, 32, 64, [3, 3, 3], [1, 2, 2], [1, 2, 2], [3, 3, 3]),
        ]
        said = {"rel_pos_embed": True, "proj_after_attn": True}
        return library.MViT((64, 64), 8, blocks, False, True, num_classes=4, **said)

    def short(batch: int, _: bool) -> Tensor:
        return torch.randn(batch, 3, 8, 64, 64)

    add("tv-mvit", "torchvision", "video", mvit, short, other=False)


def _series(batch: int, more: bool) -> Tensor:
    return torch.randn(batch, 24 if more else 16, 8)


def _series_models() -> None:
    patches = {"num_input_channels": 4, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32}
    sizes = {"num_attention_heads": 4, "ffn_dim": 64, "num_hidden_layers": 2, "prediction_length": 8}
    make = _hf("PatchTSTConfig", "PatchTSTForPrediction", **patches, **sizes, loss="mse")
    add("hf-patchtst", "transformers", "time series", make, lambda b, _: torch.randn(b, 32, 4), other=False)
    mixer = {"num_input_channels": 4, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16}
    make = _hf("PatchTSMixerConfig", "PatchTSMixerForPrediction", **mixer, num_layers=2, prediction_length=8)
    add("hf-patchtsmixer", "transformers", "time series", make, lambda b, _: torch.randn(b, 32, 4), other=False)
    for name, model in (("lstm-forecaster", hand.LSTMForecaster), ("cell-forecaster", hand.CellForecaster)):
        add(f"hand-{name}", "by hand", "time series", model, _series, dynamic="length")

    def along(batch: int, more: bool) -> Tensor:
        return torch.randn(batch, 8, 40 if more else 24)

    add("hand-tcn", "by hand", "time series", hand.TCN, along, dynamic="length")
    add("hand-nbeats", "by hand", "time series", hand.NBeats, lambda b, _: torch.randn(b, 24), other=False)
    add("hand-dlinear", "by hand", "time series", hand.DLinear, lambda b, _: torch.randn(b, 24, 3), other=False)


def _recurrent_models() -> None:
    def tokens(batch: int, more: bool) -> Tensor:
        return torch.randint(0, 99, (batch, 20 if more else 12))

    def sequences(batch: int, more: bool) -> Tensor:
        return torch.randn(batch, 20 if more else 12, 16)

    def sounds(batch: int, more: bool) -> Tensor:
        return torch.randn(batch, 1, 32, 30 if more else 20)

    add("hand-lstm", "by hand", "recurrent", hand.LSTMClassifier, tokens, dynamic="length")
    add("hand-gru", "by hand", "recurrent", hand.GRUClassifier, sequences, dynamic="length")
    add("hand-crnn", "by hand", "audio", hand.CRNN, sounds, dynamic="length")


def _table(batch: int, _: bool) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 6), torch.randint(0, 5, (batch, 3))


def _tabular_models() -> None:
    add("hand-ft-transformer", "by hand", "tabular", hand.FTTransformer, _table, other=False)
    add("hand-tabnet", "by hand", "tabular", hand.TabNetLike, lambda b, _: torch.randn(b, 12), other=False)
    add("hand-table-mlp", "by hand", "tabular", hand.TableMLP, _table, other=False)


def _recommender_models() -> None:
    def sparse(batch: int, more: bool) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 6), torch.randint(0, 20, (batch, 2, 5 if more else 3))

    def pairs(batch: int, _: bool) -> tuple[Tensor, Tensor]:
        return torch.randint(0, 50, (batch,)), torch.randint(0, 70, (batch,))

    add("hand-dlrm", "by hand", "recommender", hand.DLRM, sparse, dynamic="bag")
    fields = "by hand", "recommender", hand.DeepFM
    add("hand-deepfm", *fields, lambda b, _: torch.randint(0, 25, (b, 4)), other=False)
    add("hand-two-towers", "by hand", "recommender", hand.TwoTowers, pairs, other=False)


def _audio_models() -> None:
    add("hand-spectrogram", "by hand", "audio", hand.SpectrogramCNN, _wave, dynamic="length")
    add("hand-conv-tasnet", "by hand", "audio", hand.ConvTasNetLike, _wave, dynamic="length")


def _graph_models() -> None:
    def graph(nodes: int, edges: int, features: int) -> Feed:
        def feed(_: int, more: bool) -> tuple[Tensor, Tensor]:
            n, e = (2 * nodes, 2 * edges) if more else (nodes, edges)
            return torch.randn(n, features), torch.randint(0, n, (2, e))

        return feed

    for name, model in (("gcn", hand.GCN), ("gat", hand.GAT), ("sage", hand.SAGE)):
        feed = graph(10, 30, 12)
        add(f"hand-{name}", "by hand", "graphs", model, feed, batched=False, dynamic="nodes, edges")


for _models in (
    *(_timm_models, _text_models, _speech_models, _vision_models, _diffusion_models, _segmentation_models),
    *(_detection_models, _video_models, _series_models, _recurrent_models, _tabular_models, _recommender_models),
    *(_audio_models, _graph_models),
):
    _models()
