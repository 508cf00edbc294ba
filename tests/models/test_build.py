"""Networks: exact sizes and keys, attention against a second formula, frozen parts, seeds, fields that are rejected."""

import re
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn

from cls.config import Model
from cls.models.attention import CBAM, LogitGate
from cls.models.backbones import normalization
from cls.models.build import build_model, build_shapes, fresh_parameters
from cls.models.freeze import train_mode
from cls.models.heads import head_layers
from cls.models.weights import weight_file

SMALL = Model(backbone="resnext14_8x8d", weights="none")
LITE = Model(backbone="timm/tf_efficientnet_lite0", weights="none")
ALL = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")


def meta(config: Model, classes: int = 10) -> nn.Module:
    return build_shapes(config, classes)


@pytest.mark.parametrize(
    ("backbone", "library"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(num_classes=10)),
        ("resnext50_32x4d", lambda: torchvision.models.resnext50_32x4d(num_classes=10)),
        ("wide_resnet50_2", lambda: torchvision.models.wide_resnet50_2(num_classes=10)),
        ("timm/resnetrs50", lambda: timm.create_model("resnetrs50", num_classes=10)),
        ("timm/seresnext101d_32x8d.ah_in1k", lambda: timm.create_model("seresnext101d_32x8d", num_classes=10)),
        ("timm/tf_efficientnet_lite0", lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10)),
    ],
)
def test_a_plain_head_has_the_librarys_own_keys_and_shapes(backbone, library):
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in library().state_dict().items()}
    assert {name: value.shape for name, value in meta(Model(backbone=backbone)).state_dict().items()} == wanted


def test_added_parts_only_add_keys():
    with torch.device("meta"):
        plain = set(torchvision.models.resnet50(num_classes=10).state_dict()) - {"fc.weight", "fc.bias"}
    config = Model(backbone="resnet50", cbam=(3, 4), dropout3=0.2, gate=500, head="bn 512 relu dropout:0.5")
    model = meta(config)
    cbam = {
        f"layer{k}.{n}.{key}" for k, n in ((3, 6), (4, 3)) for key in ("mlp.0.weight", "mlp.2.weight", "spatial.weight")
    }
    head = {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias", "fc.6.weight", "fc.6.bias"}
    head |= {f"fc.1.{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")}
    head |= {f"fc.2.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(model.state_dict()) == plain | cbam | head
    kept = {name for name, _ in model.named_parameters() if name in plain} | {"fc.0.weight", "fc.0.bias"}
    assert fresh_parameters(model, config) == {name for name, _ in model.named_parameters()} - kept
    assert [type(part) for part in model.layer3][-2:] == [CBAM, nn.Dropout]
    assert model.layer3[-1].p == 0.2


def test_fresh_parameters_of_a_timm_model_are_its_classifier():
    config = Model(backbone="timm/tf_efficientnet_lite0", head="dropout:0.5")
    assert fresh_parameters(meta(config), config) == {"classifier.1.weight", "classifier.1.bias"}


def hand_cbam(x, w1, w2, kernel, chained):
    """CBAM with loops over positions and torch.nn.functional only."""
    count, channels, height, width = x.shape
    factors = torch.zeros(count, channels)
    for i in range(count):
        average = torch.tensor([x[i, c].sum() / (height * width) for c in range(channels)])
        maximum = torch.tensor([x[i, c].flatten().sort().values[-1] for c in range(channels)])
        first = w2 @ (w1 @ average).clamp(min=0)
        second = w2 @ (w1 @ (first if chained else maximum)).clamp(min=0)
        factors[i] = 1 / (1 + (-(first + second)).exp())
    y = x * factors[:, :, None, None]
    maps = torch.stack([y.sum(1) / channels, y.sort(1).values[:, -1]], 1)
    padded = torch.zeros(count, 2, height + 6, width + 6)
    padded[:, :, 3:-3, 3:-3] = maps
    out = torch.zeros_like(y)
    for row in range(height):
        for column in range(width):
            score = (padded[:, :, row : row + 7, column : column + 7] * kernel[0]).sum((1, 2, 3))
            out[:, :, row, column] = y[:, :, row, column] / (1 + (-score).exp())[:, None]
    return out


@pytest.mark.parametrize("chained", [False, True])
def test_cbam_is_the_formula(chained):
    torch.manual_seed(0)
    module, images = CBAM(32, chained=chained), torch.randn(3, 32, 5, 4)
    assert sum(p.numel() for p in module.parameters()) == 2 * 32 * 2 + 98
    with torch.no_grad():
        weights = module.mlp[0].weight, module.mlp[2].weight, module.spatial.weight
        assert torch.allclose(module(images), hand_cbam(images, *weights, chained), atol=1e-6)
        assert not torch.allclose(module(images), hand_cbam(images, *weights, not chained), atol=1e-4)


def test_the_chained_cbam_is_pooling_of_the_average_branch():
    """Report 2's program in its own words: the max pool is applied to the output of the average branch."""
    torch.manual_seed(0)
    module, images = CBAM(32, chained=True), torch.randn(2, 32, 6, 6)
    pooled = nn.functional.adaptive_avg_pool2d(images, 1)
    first, last = (module.mlp[k].weight[:, :, None, None] for k in (0, 2))
    average = nn.functional.conv2d(nn.functional.conv2d(pooled, first).relu(), last)
    again = nn.functional.adaptive_max_pool2d(average, 1)
    scaled = images * (average + nn.functional.conv2d(nn.functional.conv2d(again, first).relu(), last)).sigmoid()
    maps = torch.cat([scaled.mean(1, keepdim=True), scaled.max(1, keepdim=True).values], 1)
    assert torch.allclose(module(images), scaled * module.spatial(maps).sigmoid(), atol=1e-6)


def test_the_gate_is_the_formula():
    torch.manual_seed(0)
    gate, logits = LogitGate(7, 3), torch.randn(5, 7)
    inner = torch.einsum("bk,wk->bw", logits, gate.down.weight) + gate.down.bias
    outer = torch.einsum("bw,kw->bk", 2 / (1 + (-2 * inner).exp()) - 1, gate.up.weight) + gate.up.bias
    assert torch.allclose(gate(logits), logits / (1 + (-outer).exp()), atol=1e-6)


def test_a_gated_model_is_backbone_gate_head():
    config = replace(SMALL, gate=5, head="bn 6 relu")
    model = build_model(config, 10, 0).eval()
    plain = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1] * 4, groups=8, width_per_group=8)
    own = {name.replace("fc.0.", "fc."): value for name, value in model.state_dict().items()
           if not name.startswith("fc.") or name.startswith("fc.0.")}  # fmt: skip
    plain.load_state_dict(own)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = plain.eval()(images)
        assert logits.shape == (2, 1000)
        gated = logits * torch.sigmoid(model.fc[1].up(torch.tanh(model.fc[1].down(logits))))
        assert torch.allclose(model(images), model.fc[5](model.fc[3](model.fc[2](gated)).relu()), atol=1e-5)


def test_head_words_become_layers():
    # since torch 2.14 BatchNorm1d says whether it has a bias
    kinds = [str(layer).replace(" bias=True, track", " track") for layer in head_layers(
        "1024 bn silu dropout:0.4 250 relu", 2048, 100)]  # fmt: skip
    assert kinds == [
        "Linear(in_features=2048, out_features=1024, bias=True)",
        "BatchNorm1d(1024, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)",
        "SiLU()",
        "Dropout(p=0.4, inplace=False)",
        "Linear(in_features=1024, out_features=250, bias=True)",
        "ReLU()",
        "Linear(in_features=250, out_features=100, bias=True)",
    ]


@pytest.mark.parametrize(
    "word", ["gelu", "dropout", "dropout:", "dropout:1.5", "dropout:x", "0", "-5", "5.0", "drop:0.5"]
)
def test_a_bad_head_word_is_named(word):
    with pytest.raises(ValueError, match=rf"model\.head: unknown word '{re.escape(word)}'"):
        build_model(replace(SMALL, head=f"16 relu {word}"), 10, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SMALL, freeze=("layer5",)), r"model.freeze: no part named 'layer5'; .* has stem, conv1, bn1,"),
        (replace(SMALL, freeze=ALL), r"model.freeze: .* leaves nothing"),
        (replace(LITE, cbam=(4,)), r"model.cbam: EfficientNet has no stage layer4"),
        (replace(LITE, dropout3=0.2), r"model.dropout3: EfficientNet has no stage"),
        (replace(LITE, freeze=("stem",)), r"model.freeze: no part named 'stem'.*conv_stem"),
        (replace(LITE, backbone="timm/deit_tiny_distilled_patch16_224"), r"model.backbone: .* no single output"),
    ],
)  # fmt: skip
def test_impossible_fields_are_named(config, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_model(config, 10, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Model(backbone="resnext101_32x8"), "unknown backbone 'resnext101_32x8'; did you mean resnext101_32x8d or"),
        (Model(backbone="resnetrs50"), r"did you mean timm/resnetrs50\?"),
        (Model(backbone="timm/resnetr50"), r"did you mean .*timm/resnetrs50"),
        (Model(backbone="timm/resnet50.a1_in2k"), r"did you mean .*timm/resnet50.a1_in1k"),
        (Model(backbone="vgg16"), "unknown backbone 'vgg16'; did you mean timm/vgg16"),
        (Model(backbone="resnet50", weights="IMAGENET1K_V3"), "no weights 'IMAGENET1K_V3'; did you mean IMAGENET1K_V"),
        (Model(backbone="resnet34", weights="IMAGENET1K_V2"), "weights 'IMAGENET1K_V2'; did you mean IMAGENET1K_V1"),
        (Model(backbone="resnet50", weights="timm"), "no weights 'timm'; it takes none, DEFAULT, IMAGENET1K_V1"),
        (Model(backbone="timm/resnetrs50", weights="DEFAULT"), "no weights 'DEFAULT'; it takes none, timm"),
        (Model(backbone="resnext14_8x8d", weights="DEFAULT"), "resnext14_8x8d has no weights 'DEFAULT'"),
        (Model(backbone="timm/resnet10t.not_there", weights="timm"), "unknown backbone"),
    ],
)  # fmt: skip
def test_unknown_names_come_with_the_nearest(config, message):
    with pytest.raises(ValueError, match=message):
        weight_file(config)


def test_normalization_follows_the_weights():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization(Model(backbone="resnet50")) == imagenet
    assert normalization(Model(backbone="resnext14_8x8d")) == half
    assert normalization(Model(backbone="timm/seresnext101d_32x8d.ah_in1k", weights="timm")) == imagenet
    assert normalization(Model(backbone="timm/tf_efficientnet_lite0", weights="some/file.safetensors")) == half


STEP = replace(SMALL, freeze=("stem", "layer1", "layer2"), cbam=(2, 4), dropout3=0.2, head="16 bn relu dropout:0.5")


FROZEN = ("conv1.", "bn1.", "layer1.", "layer2.0.")


def after_a_step(config: Model) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network after a step of its optimizer, and its values before."""
    model = build_model(config, 10, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_mode(model, config.in_eval_mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    optimizer.step()
    return model, before


def test_frozen_parts_keep_their_bits_through_a_step():
    model, before = after_a_step(STEP)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith(FROZEN)), name
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith(FROZEN)}
    # what was added behind a frozen stage is trained
    assert {"layer2.1.mlp.0.weight", "layer2.1.spatial.weight"} <= changed


def test_frozen_norms_may_move_their_statistics_but_not_their_weights():
    model, before = after_a_step(replace(STEP, freeze_norms=False))
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    statistics = {name for name, _ in model.named_buffers()}
    assert kept == {name for name in before if name.startswith(FROZEN)} - statistics
    assert any(name.startswith("layer1.") for name in statistics)


def test_train_mode_keeps_added_dropout_awake_in_a_frozen_stage():
    config = replace(STEP, freeze=("layer3",), cbam=())
    model = build_model(config, 10, 0).eval()
    train_mode(model, config.in_eval_mode)
    assert [part.training for part in model.layer3] == [False, True]
    assert model.layer4.training and model.fc.training
    assert not any(module.training for module in model.layer3[0].modules())


def test_a_timm_stem_is_frozen_whole():
    model = meta(Model(backbone="timm/resnetrs50", freeze=("stem",)))
    fixed = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"conv1", "bn1", "maxpool"}  # its pooling is a convolution
    assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith(("layer", "fc")))


def test_fresh_values_come_from_the_seed_alone():
    config = replace(SMALL, cbam=(4,), gate=5, head="16 bn relu")
    torch.manual_seed(1)
    first = build_model(config, 10, 7).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_model(config, 10, 7).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)

    other = build_model(config, 10, 8).state_dict()
    fresh = fresh_parameters(build_model(config, 10, 7), config)
    constant = {"fc.3.weight", "fc.3.bias"}  # BatchNorm starts at 1 and 0
    assert {name for name in fresh if torch.equal(first[name], other[name])} == constant
    # the head does not depend on what was drawn for the backbone before it
    wider = build_model(Model(backbone="resnet18", weights="none", head="16 relu"), 10, 7)
    narrow = build_model(Model(backbone="resnet34", weights="none", head="16 relu"), 10, 7)
    assert torch.equal(wider.fc[0].weight, narrow.fc[0].weight) and torch.equal(wider.fc[2].weight, narrow.fc[2].weight)


def test_equal_maxima_share_the_gradient():
    """The mark of amax, which is deterministic on CUDA; a max pool would give all of it to one of them."""
    module, features = CBAM(16), torch.ones(1, 16, 2, 2, requires_grad=True)
    nn.init.zeros_(module.spatial.weight)
    torch.use_deterministic_algorithms(True)
    try:
        module(features).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(features.grad, features.grad[:, :, :1, :1].expand_as(features.grad))
