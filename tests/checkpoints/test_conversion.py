from functools import partial

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch.nn import functional as F

from slide_mm.checkpoints import (
    MIN_COVERAGE,
    CheckpointError,
    convert_state_dict,
    recognise,
)
from slide_mm.layers import Block, DepthwiseConvMlp, LocalPerception, SlideAttention
from slide_mm.models import SlidePVT, SlidePVTv2, SlideSwin
from slide_mm.models.classifiers import SlidePVTClassifier
from tests.checkpoints.layouts import (
    DIMS,
    PVT,
    SWIN,
    authors_slide_swin,
    in_microsofts_names,
    in_pvts_names,
    mmdet_pvt,
    mmdet_swin,
    timm_pvt_v2,
    timm_swin,
)


def convert(state_dict, model, **options):
    return convert_state_dict(state_dict, model, "checkpoint some.pth", **options)


def load(model, state_dict, **options):
    """Convert into a model, and say what became of each tensor."""
    conversion = convert(state_dict, model, **options)
    model.load_state_dict(conversion.weights, strict=False)
    return conversion.report


def names(entries):
    return {entry.name for entry in entries}


class TestLayouts:
    def test_names_of_microsoft_and_timm_are_one_model(self):
        model = timm_swin()
        ours = SlideSwin(SWIN, slide_stages=())
        microsofts = convert(in_microsofts_names(model), ours)
        timms = convert(model.state_dict(), ours)
        assert (microsofts.report.source, timms.report.source) == ("swin", "swin-timm")
        assert microsofts.weights.keys() == timms.weights.keys()
        assert all(
            torch.equal(microsofts.weights[name], timms.weights[name]) for name in timms.weights
        )
        assert names(microsofts.report.left_over) >= {"layers.0.blocks.1.attn_mask", "head.weight"}

    @pytest.mark.parametrize("version", [1, 2])
    def test_names_of_pvts_authors_and_mmdet_are_one_model(self, version):
        family, ours = [
            ("PyramidVisionTransformer", SlidePVT(PVT)),
            ("PyramidVisionTransformerV2", SlidePVTv2(PVT)),
        ][version - 1]
        model = mmdet_pvt(family)
        ours = type(ours)(PVT, slide_stages=())
        authors = convert(in_pvts_names(model, version), ours)
        mmdets = convert(model.state_dict(), ours)
        assert authors.report.source + "-mmdet" == mmdets.report.source
        assert authors.weights.keys() == mmdets.weights.keys() == ours.state_dict().keys()
        assert all(
            torch.equal(authors.weights[name], mmdets.weights[name]) for name in authors.weights
        )

    def test_headless_swins_are_told_apart(self):
        """Only the stage that a patch merging is counted to tells Microsoft's from timm's."""
        model = timm_swin()
        for state_dict, source in (
            (in_microsofts_names(model), "swin"),
            (model.state_dict(), "swin-timm"),
        ):
            headless = {name: x for name, x in state_dict.items() if not name.startswith("head")}
            assert recognise(headless, "") == source

    def test_detector_is_read_below_its_backbone(self):
        state_dict = SlidePVTv2(PVT).state_dict()
        detector = {f"backbone.{name}": tensor for name, tensor in state_dict.items()}
        detector["neck.weight"] = torch.zeros(1)
        other = {f"teacher.backbone.{name}": tensor for name, tensor in state_dict.items()}
        for weights, prefix in (
            (detector, None),
            (detector, "backbone."),
            (other, "teacher.backbone"),
        ):
            conversion = convert(weights, SlidePVTv2(PVT), prefix=prefix)
            assert conversion.weights.keys() == state_dict.keys()

    def test_all_parts_of_a_block_are_ours(self):
        model = SlideSwin(SWIN)
        for stage, dims in zip(model.stages, model.embed_dims, strict=True):
            mlp = DepthwiseConvMlp(dims, dims)
            options = {"local": LocalPerception(dims), "layer_scale": 1.0}
            stage.blocks[0] = Block(dims, SlideAttention(dims, 1), mlp, **options)
        assert convert(model.state_dict(), model).weights.keys() == model.state_dict().keys()

    def test_deployed_weights_can_be_trained(self):
        theirs = SlideSwin(SWIN)
        deployed = reparameterize_model(theirs)
        ours = SlideSwin(SWIN)
        load(ours, deployed.state_dict())
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-6)


class TestAuthorsSlideSwin:
    @pytest.fixture
    def pair(self):
        torch.manual_seed(0)
        theirs = authors_slide_swin()
        ours = SlideSwin(SWIN, window_size=(16, 8, 4, 2), drop_path_rate=0.0)
        report = load(ours, in_microsofts_names(theirs))
        return theirs, ours, report

    def test_recognised_and_covered(self, pair):
        report = pair[2]
        assert report.source == "slide-swin"
        assert not report.resampled
        # The authors have one norm, after the last stage.
        assert names(report.initialised) == {
            f"out_norms.{stage}.{kind}" for stage in range(3) for kind in ("weight", "bias")
        }

    @pytest.mark.parametrize("mode", ["train", "eval", "deployed"])
    def test_same_features_and_logits(self, pair, mode):
        theirs, ours = (model.train(mode == "train") for model in pair[:2])
        ours = reparameterize_model(ours) if mode == "deployed" else ours
        image = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            features, reference = (
                ours(image)[-1],
                theirs.forward_features(image).permute(0, 3, 1, 2),
            )
            logits = theirs.head.fc(features.mean(dim=(2, 3)))
        assert (features - reference).abs().max() < 1e-5 * reference.abs().max()
        assert (logits - theirs(image)).abs().max() < 1e-5 * logits.abs().max()

    def test_windows_of_one_resolution_are_resampled(self, pair):
        report = load(SlideSwin(SWIN, window_size=7), in_microsofts_names(pair[0]))
        tables = {
            f"stages.{stage}.blocks.{block}.mixer.relative_position_bias_table"
            for stage in (2, 3)
            for block in (0, 1)
        }
        assert names(report.resampled) == tables
        assert "(49, 4) -> (169, 4)" in str(report)


def plain_local_attention(query, key, value):
    """Attention of (B, H, W, heads, head_dim) to 3 x 3 neighbours, zeros outside the image."""
    height, width = query.shape[1:3]
    key, value = (F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1)) for x in (key, value))
    windows = [
        (slice(row, row + height), slice(column, column + width))
        for row in range(3)
        for column in range(3)
    ]
    keys, values = (torch.stack([x[:, r, c] for r, c in windows], -1) for x in (key, value))
    logits = torch.einsum("...c,...ct->...t", query * query.shape[-1] ** -0.5, keys)
    return torch.einsum("...t,...ct->...c", logits.softmax(dim=-1), values)


BASELINES = {
    "swin-timm": (SlideSwin, SWIN, partial(timm_swin, img_size=224)),
    "swin-mmdet": (SlideSwin, SWIN, mmdet_swin),
    "pvt-mmdet": (SlidePVT, PVT, mmdet_pvt),
    "pvtv2-timm": (SlidePVTv2, PVT, timm_pvt_v2),
    "pvtv2-mmdet": (SlidePVTv2, PVT, partial(mmdet_pvt, "PyramidVisionTransformerV2")),
}


@pytest.mark.parametrize("source", BASELINES)
def test_warm_start(source):
    """Sliding stages become plain local attention, the others stay exactly what they were."""
    torch.manual_seed(0)
    family, arch, make = BASELINES[source]
    state_dict = make().state_dict()
    original, sliding = family(arch, slide_stages=()).eval(), family(arch).eval()
    assert load(original, state_dict).coverage > 0.98
    report = load(sliding, state_dict)
    assert report.source == source
    later = {name for name in sliding.state_dict() if name.startswith(("stages.2.", "stages.3."))}
    assert later <= names(report.copied)
    report.require(MIN_COVERAGE)
    assert not report.misplaced
    tokens = torch.randn(1, 9, 13, original.embed_dims[1])
    for stage in (2, 3):
        tokens, theirs = sliding.stages[stage](tokens), original.stages[stage](tokens)
        assert torch.equal(tokens, theirs)
    for stage in (0, 1):
        block, reference = sliding.stages[stage].blocks[-1], original.stages[stage].blocks[-1]
        x = torch.randn(1, 6, 5, original.embed_dims[stage])
        mixer = reference.mixer
        joined = [mixer.q(x), mixer.kv(x)] if hasattr(mixer, "kv") else [mixer.qkv(x)]
        qkv = torch.cat(joined, dim=-1).unflatten(-1, (3, mixer.num_heads, -1)).unbind(3)
        expected = mixer.proj(plain_local_attention(*qkv).flatten(-2))
        torch.testing.assert_close(block.mixer(x), expected)
        for layer in ("mlp", "norm1", "norm2"):
            assert torch.equal(getattr(block, layer)(x), getattr(reference, layer)(x))


def test_own_baseline_starts_its_slide_variant():
    baseline = SlidePVTv2(PVT, slide_stages=())
    sliding = SlidePVTv2(PVT, slide_stages=(0,))
    report = load(sliding, baseline.state_dict())
    assert report.source == "slide-mm"
    assert names(report.left_over) == {
        f"stages.0.blocks.0.mixer.{layer}.{kind}"
        for layer in ("sr", "norm")
        for kind in ("weight", "bias")
    }
    assert names(report.initialised) == {
        f"stages.0.blocks.0.mixer.{name}"
        for name in ("deformed_kernel", "shift_bias", "relative_position_bias_table")
    }
    kept = baseline.state_dict().keys() & sliding.state_dict().keys()
    assert all(torch.equal(baseline.state_dict()[n], sliding.state_dict()[n]) for n in kept)


class TestResampling:
    def test_window_tables(self):
        """Each head's table of offsets is resized as a picture."""
        wide, narrow = (SlideSwin(SWIN, slide_stages=(), window_size=size) for size in (12, 7))
        report = load(narrow, wide.state_dict())
        tables = {name for name in wide.state_dict() if name.endswith("bias_table")}
        assert names(report.resampled) == tables
        assert report.coverage == 1
        for name in tables:
            picture = wide.state_dict()[name].T.unflatten(1, (1, 23, 23))
            expected = F.interpolate(picture, size=(13, 13), mode="bicubic").flatten(1).T
            torch.testing.assert_close(narrow.state_dict()[name], expected)

    def test_positions_are_what_the_model_would_make_of_them(self):
        small = SlidePVT(PVT, pretrain_img_size=64).eval()
        large = SlidePVT(PVT, pretrain_img_size=128).eval()
        report = load(large, small.state_dict())
        assert names(report.resampled) == {f"stages.{stage}.position.table" for stage in range(4)}
        image = torch.randn(1, 3, 128, 128)
        for ours, theirs in zip(large(image), small(image), strict=True):
            assert torch.equal(ours, theirs)


class TestClassifiers:
    def test_classifier_comes_along_when_asked(self):
        state_dict = timm_swin().state_dict()
        weights = convert(state_dict, SlideSwin(SWIN), keep_classifier=True).weights
        assert torch.equal(weights["head.fc.weight"], state_dict["head.fc.weight"])
        assert "head.fc.weight" not in convert(state_dict, SlideSwin(SWIN)).weights

    def test_norm_in_front_of_the_classifier_comes_along(self):
        classifier = SlidePVTClassifier(PVT, num_classes=3)
        weights = convert(classifier.state_dict(), SlidePVT(PVT), keep_classifier=True).weights
        assert weights.keys() == classifier.state_dict().keys()

    def test_classifier_of_other_classes_stays(self):
        model = SlideSwin(SWIN)
        model.head = torch.nn.ModuleDict({"fc": torch.nn.Linear(DIMS[3], 3)})
        report = load(model, timm_swin().state_dict())
        assert {"head.fc.weight", "head.fc.bias"} <= names(report.initialised)
        assert report.coverage > 0.98


class TestRefusals:
    """Each in one line that says what is wrong."""

    @pytest.fixture
    def refused(self):
        def refuse(state_dict, model, match, **options):
            with pytest.raises(CheckpointError, match=match) as caught:
                convert(state_dict, model, **options).report.require(0.9)
            assert "\n" not in str(caught.value)

        return refuse

    def test_other_models(self, refused):
        resnet = timm.create_model("resnet10t").state_dict()
        refused(
            resnet, SlideSwin(SWIN), "is of another model: its weights begin with conv1.0.weight"
        )
        swin_v2 = timm.create_model("swinv2_tiny_window8_256", img_size=64).state_dict()
        refused(
            swin_v2, SlideSwin(SWIN), "is of another model: its weights are most like swin-timm"
        )
        refused(
            SlideSwin(SWIN).state_dict(), SlidePVT(PVT), r"does not fit SlidePVT: stages.0.down"
        )
        pvt = mmdet_pvt().state_dict()
        refused(pvt, SlidePVTv2(PVT), r"is for SlidePVT \(layout pvt-mmdet\), not for SlidePVTv2")

    def test_unknown_source(self, refused):
        match = "source is 'foo': choose one of slide-mm, "
        refused(SlideSwin(SWIN).state_dict(), SlideSwin(SWIN), match, source="foo")

    def test_no_weights(self, refused):
        refused({}, SlideSwin(SWIN), "has no weights")
        refused(
            {"a.b": torch.ones(1)}, SlideSwin(SWIN), "has no weights below 'c.'; .* a.b", prefix="c"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers(self, refused, value):
        state_dict = timm_swin().state_dict()
        state_dict["layers.1.blocks.0.mlp.fc1.weight"][3, 4] = value
        match = "has NaN or infinite values in layers.1.blocks.0.mlp.fc1.weight"
        refused(state_dict, SlideSwin(SWIN), match)

    def test_channels(self, refused):
        state_dict = timm_swin().state_dict()
        refused(
            state_dict, SlideSwin(SWIN, in_channels=4), "images of 3 channels and the model of 4"
        )
        wide = SWIN | {"embed_dims": (32, 64, 128, 256)}
        match = r"stages.0.downsample.proj.weight is \(16, 3, 4, 4\) in the checkpoint and \(32,"
        refused(state_dict, SlideSwin(wide), match)

    def test_windows_that_are_no_squares(self, refused):
        state_dict = timm_swin(window_size=(7, 3)).state_dict()
        match = r"stages.2.blocks.0.mixer.relative_position_bias_table is \(\d+, 4\) in the check"
        refused(state_dict, SlideSwin(SWIN), match)

    def test_depths(self, refused):
        """Each has all blocks of the other, or the other's and more."""
        deep = SWIN | {"depths": (2, 2, 6, 2)}
        state_dict = timm_swin().state_dict()
        match = r"7\d\.\d% of the .* stages.2.blocks.2.norm1.weight is not in the checkpoint"
        refused(state_dict, SlideSwin(deep), match)
        match = r"7\d\.\d% of the .* stages.2.blocks.2.norm1.weight is not in the model"
        refused(SlideSwin(deep).state_dict(), SlideSwin(SWIN), match)

    def test_stage_that_does_not_slide(self, refused):
        state_dict = SlidePVTv2(PVT, slide_stages=(0, 1)).state_dict()
        refused(
            state_dict,
            SlidePVTv2(PVT, slide_stages=(0,)),
            "slides in stage 1 and the model does not",
        )
