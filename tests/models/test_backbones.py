import math

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from timm.utils.model import reparameterize_model

from slide_mm.checkpoints import CheckpointError
from slide_mm.layers import SlideAttention
from slide_mm.models import FAMILIES, SlidePVTv2
from tests.models.archs import FAMILY, STRIDES, build, narrow

SIZES = [(1, 1), (31, 57), (224, 224), (333, 500), (64, 2048)]


@FAMILY
@pytest.mark.parametrize("arch", ["narrow", pytest.param("published", marks=pytest.mark.slow)])
def test_every_arch_takes_every_size_and_deploys(family, arch):
    archs = [narrow(family)] if arch == "narrow" else family.backbone.arch_zoo
    for arch in archs:
        assert_takes_every_size_and_deploys(build(family, arch=arch, drop_path_rate=0.0))


def assert_takes_every_size_and_deploys(backbone):
    parameters = sum(p.numel() for p in backbone.parameters())
    images = [torch.randn(1, 3, *size) for size in SIZES]
    with torch.no_grad():
        trained = [backbone.train()(image) for image in images]
        deployed = reparameterize_model(backbone).eval()
        for image, outputs in zip(images, trained, strict=True):
            for output, stride, dims in zip(outputs, STRIDES, backbone.embed_dims, strict=True):
                size = [math.ceil(side / stride) for side in image.shape[2:]]
                assert output.shape == (1, dims, *size)
                assert output.is_contiguous()
            for output, folded in zip(outputs, deployed(image), strict=True):
                torch.testing.assert_close(folded, output, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in deployed.parameters()) < parameters


@FAMILY
def test_gradients_reach_every_parameter(family):
    backbone = build(family, drop_path_rate=0.0)
    sum(output.square().sum() for output in backbone(torch.randn(1, 3, 96, 96))).backward()
    starved = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not starved


@FAMILY
@pytest.mark.parametrize("frozen_stages", [0, 2, 4])
def test_frozen_stages_really_freeze(family, frozen_stages):
    backbone = build(family, frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    frozen = ("stages.0.downsample", *(f"stages.{i}." for i in range(frozen_stages)))
    frozen += tuple(f"out_norms.{i}." for i in range(frozen_stages))
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for index, stage in enumerate(backbone.stages):
        assert stage.training == (index >= frozen_stages)
    if frozen_stages:
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(backbone(images)[0], backbone(images)[0])


def saved_bytes(function):
    """Bytes that autograd keeps for the backward pass of a function."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    return sum(storages.values()), output


@FAMILY
def test_checkpointing_saves_memory_and_changes_no_gradient(family):
    images = torch.randn(1, 3, 96, 64)
    memory, gradients = {}, {}
    for with_cp in (False, True):
        backbone = build(family, with_cp=with_cp, drop_path_rate=0.0)
        memory[with_cp], outputs = saved_bytes(lambda model=backbone: model(images))
        sum(output.square().mean() for output in outputs).backward()
        gradients[with_cp] = [parameter.grad for parameter in backbone.parameters()]
    assert memory[True] < 0.5 * memory[False]
    for plain, recomputed in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


@FAMILY
@pytest.mark.parametrize("deploy", [False, True])
def test_state_dict_round_trip_is_exact(family, deploy, tmp_path):
    first = build(family)
    second = family.backbone(narrow(family))
    if deploy:
        first, second = reparameterize_model(first), reparameterize_model(second)
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    second.load_state_dict(torch.load(tmp_path / "weights.pth"), strict=True)
    image = torch.randn(1, 3, 40, 72)
    for ours, theirs in zip(first.eval()(image), second.eval()(image), strict=True):
        assert torch.equal(ours, theirs)


@FAMILY
def test_out_indices_choose_stages(family):
    image = torch.randn(1, 3, 64, 64)
    everything = build(family).eval()
    some = build(family, out_indices=(2, 0)).eval()
    some.load_state_dict(everything.state_dict(), strict=False)
    assert len(some.stages) == 3
    for ours, theirs in zip(some(image), [everything(image)[i] for i in (0, 2)], strict=True):
        assert torch.equal(ours, theirs)


@FAMILY
@pytest.mark.parametrize("slide_stages", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_slide_stages_choose_the_mixer(family, slide_stages):
    stages = build(family, slide_stages=slide_stages).stages
    sliding = [{isinstance(block.mixer, SlideAttention) for block in x.blocks} for x in stages]
    assert sliding == [{index in slide_stages} for index in range(4)]


def test_features_move_with_the_image():
    """Inside, sliding stages and NAT's are equivariant to a move by their stride; windows not."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 160, 160)
    moved = image.roll((8, 8), dims=(2, 3))
    for family, slide_stages, equivariant in (
        ("slide-swin", (0, 1), True),
        ("slide-swin", (), False),
        ("slide-nat", (), True),
    ):
        backbone = build(FAMILIES[family], slide_stages=slide_stages, out_indices=(1,)).eval()
        with torch.no_grad():
            here, there = backbone(image)[0], backbone(moved)[0]
        inner = slice(9, -9)
        error = (there.roll((-1, -1), dims=(2, 3)) - here)[..., inner, inner].abs().max()
        assert (error < 1e-4) == equivariant


@FAMILY
def test_pretrained_weights_of_a_detector_are_loaded(family, tmp_path):
    source = build(family).state_dict()
    weights = {f"backbone.{name}": tensor for name, tensor in source.items()}
    torch.save({"state_dict": {**weights, "head.weight": torch.zeros(1)}}, tmp_path / "d.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "d.pth"), "prefix": "backbone."}
    for out_indices in ((0, 1, 2, 3), (0,)):
        backbone = family.backbone(narrow(family), out_indices=out_indices, init_cfg=init_cfg)
        backbone.init_weights()
        assert all(torch.equal(x, source[name]) for name, x in backbone.state_dict().items())


@FAMILY
@pytest.mark.parametrize("key", ["embed_dims", "depths"])
def test_pretrained_weights_of_another_architecture_are_refused(family, key, tmp_path):
    arch = narrow(family)
    other = arch | {key: tuple(2 * number for number in arch[key])}
    torch.save(build(family, arch=other).state_dict(), tmp_path / "other.pth")
    backbone = build(family, pretrained=str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit") as caught:
        backbone.init_weights()
    assert "\n" not in str(caught.value)


def test_pretrained_weights_of_the_original_architecture_start_a_slide_backbone(tmp_path, caplog):
    """In somebody else's names; the log says what became of them."""
    source = timm.create_model("pvt_v2_b0")
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "timm.pth")}
    backbone = SlidePVTv2(arch="b0", init_cfg=init_cfg)
    MMLogger.get_current_instance().addHandler(caplog.handler)
    backbone.init_weights()
    MMLogger.get_current_instance().removeHandler(caplog.handler)
    assert "timm.pth (layout pvtv2-timm) covers 99" in caplog.text
    assert "stages.0.blocks.*.mixer.deformed_kernel  at zero" in caplog.text
    weights = backbone.state_dict()
    assert torch.equal(weights["stages.3.norm.weight"], source.stages[3].norm.weight)
    assert not weights["stages.0.blocks.1.mixer.deformed_kernel"].any()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 1, 3, 32, 32)])
def test_wrong_images_give_one_line(shape):
    with pytest.raises(ValueError, match=r"input has shape .*: give images as \(B, 3, H, W\)"):
        build(FAMILIES["slide-pvt"])(torch.zeros(shape))
