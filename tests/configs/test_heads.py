"""Heads of MMDetection and MMSegmentation, by their own configs, on a Slide backbone."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

from slide_mm.models import FAMILIES
from tests.configs.steps import make_batch, train_one_step
from tests.models.archs import narrow

ARCH = narrow(FAMILIES["slide-swin"])
C1, C2, C3, C4 = ARCH["embed_dims"]
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs/heads.md"

# What is set beside the backbone, by the names that docs/heads.md gives the ways.
ALL = {"neck.in_channels": [C1, C2, C3, C4]}
LATER = {"backbone.out_indices": (1, 2, 3), "neck.in_channels": [C2, C3, C4]}
LATER_FPN = {**LATER, "neck.start_level": 0}
LAST = {"backbone.out_indices": (3,), "neck.in_channels": [C4]}
QUERIES = {"panoptic_head.in_channels": [C1, C2, C3, C4]}
DECODER = {"decode_head.in_channels": [C1, C2, C3, C4]}
AUXILIARY = {"auxiliary_head.in_channels": C3}
# Stages that no head looks at aren't returned, so heads count what is.
TWO_STAGES = {
    "backbone.out_indices": (2, 3),
    "decode_head.in_channels": C4,
    "decode_head.in_index": 1,
    "auxiliary_head.in_channels": C3,
    "auxiliary_head.in_index": 0,
}

DETECTORS = {
    "atss/atss_r50_fpn_1x_coco": LATER_FPN,
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco": ALL,
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance": LATER_FPN,
    "conditional_detr/conditional-detr_r50_8xb2-50e_coco": LAST,
    "ddq/ddq-detr-4scale_r50_8xb2-12e_coco": LATER,
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco": LATER,
    "dino/dino-4scale_r50_8xb2-12e_coco": LATER,
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco": ALL,
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco": LATER_FPN,
    "gfl/gfl_r50_fpn_1x_coco": LATER_FPN,
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco": QUERIES,
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic": QUERIES,
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco": ALL,
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco": ALL,
    "retinanet/retinanet_r50_fpn_1x_coco": LATER_FPN,
    "rtmdet/rtmdet_l_8xb32-300e_coco": LATER,
    "solov2/solov2_r50_fpn_1x_coco": ALL,
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco": ALL,
    "yolof/yolof_r50-c5_8xb8-1x_coco": {**LAST, "neck.in_channels": C4},
    "yolox/yolox_s_8xb8-300e_coco": LATER,
}
SEGMENTORS = {
    "deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512": TWO_STAGES,
    "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512": {
        **TWO_STAGES,
        "backbone.out_indices": (0, 2, 3),
        "decode_head.in_index": 2,
        "decode_head.c1_in_channels": C1,
        "auxiliary_head.in_index": 1,
    },
    "fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512": TWO_STAGES,
    "knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512": {
        "decode_head.kernel_generate_head.in_channels": [C1, C2, C3, C4],
        **AUXILIARY,
    },
    "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512": DECODER,
    "ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512": {
        "decode_head.0.in_channels": [C1, C2, C3, C4],
        "decode_head.0.channels": C1 + C2 + C3 + C4,
        "decode_head.1.in_channels": [C1, C2, C3, C4],
    },
    "point_rend/pointrend_r50_4xb4-160k_ade20k-512x512": ALL,
    "pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512": TWO_STAGES,
    "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512": DECODER,
    "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512": {
        "backbone.out_indices": (1, 2, 3),
        "decode_head.in_channels": [C2, C3, C4],
        "decode_head.in_index": [0, 1, 2],
    },
    "sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512": ALL,
    "upernet/upernet_r50_4xb4-80k_ade20k-512x512": {**DECODER, **AUXILIARY},
}
HEADS = [
    *(("mmdet", name, changes) for name, changes in DETECTORS.items()),
    *(("mmseg", name, changes) for name, changes in SEGMENTORS.items()),
]
QUICK = {"retinanet", "fcn", "segformer"}


def read_config(library, name):
    """A config as it lies in the package of MMDetection or MMSegmentation."""
    (package,) = find_spec(library).submodule_search_locations
    return Config.fromfile(Path(package) / f".mim/configs/{name}.py")


def plug_in(cfg, changes):
    backbone = dict(type="SlideSwin", arch=ARCH, drop_path_rate=0.0)
    cfg.model.backbone = backbone
    if cfg.default_scope == "mmseg":
        cfg.model.pretrained = None
    cfg.merge_from_dict({f"model.{key}": value for key, value in changes.items()})


def mark_all_but_some_as_slow(heads):
    return [
        pytest.param(
            *head,
            id="-".join(head[:2]).replace("/", "-"),
            marks=() if head[1].split("/")[0] in QUICK else pytest.mark.slow,
        )
        for head in heads
    ]


@pytest.mark.parametrize(("library", "name", "changes"), mark_all_but_some_as_slow(HEADS))
def test_head_trains_and_predicts(library, name, changes):
    cfg = read_config(library, name)
    plug_in(cfg, changes)
    batch = make_batch(cfg, 64, 64)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        model.init_weights()
        optim_wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), weight_decay=0.0))
        losses, same = train_one_step(model, batch, optim_wrapper)
        with torch.no_grad():  # PointRend can neither do with gradients nor several images.
            (prediction,) = model.eval().test_step({key: part[:1] for key, part in batch.items()})
    assert torch.isfinite(losses["loss"])
    assert not same
    check_prediction(prediction)


def check_prediction(prediction):
    if "pred_sem_seg" in prediction:
        assert prediction.pred_sem_seg.data.shape == (1, 64, 64)
        return
    if "pred_panoptic_seg" in prediction:
        assert prediction.pred_panoptic_seg.sem_seg.shape == (1, 64, 64)
    found = prediction.pred_instances
    assert found.bboxes.shape == (len(found), 4)
    assert found.scores.isfinite().all()


def test_page_lists_these_heads():
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| [^|]+ \| `(\w+/[^`]+)`", page, flags=re.MULTILINE) == [
        *DETECTORS,
        *SEGMENTORS,
    ]
    assert f"These {len(HEADS)} heads" in page


def test_page_names_configs_that_are_here():
    page = PAGE.read_text(encoding="utf-8")
    here = page.partition("## A head of your choice")[0]
    for family, short in (("slide_swin", "slide-swin-t"), ("slide_pvtv2", "slide-pvtv2-b2")):
        names = {
            name.replace("_X_", f"_{short}_") for name in re.findall(r"`(\w[\w-]*_X_[^`]+)`", here)
        }
        assert len(names) == 10
        assert all((CONFIGS / family / f"{name}.py").is_file() for name in names)


def describe(head):
    """All modules of a head, and the plain values that they have."""
    plain = (int, float, str, list, tuple, type(None))
    values = [
        {key: value for key, value in vars(module).items() if isinstance(value, plain)}
        for module in head.modules()
    ]
    return repr(head), values, getattr(head, "train_cfg", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            "slide_swin/mask2former_slide-swin-t_8xb2-160k_ade20k-512x512",
            "mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512",
        ),
        (
            "slide_pvtv2/segformer_slide-pvtv2-b2_8xb2-160k_ade20k-512x512",
            "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512",
        ),
    ],
)
def test_heads_written_here_are_mmsegmentations(ours, theirs):
    configs = Config.fromfile(CONFIGS / f"{ours}.py"), read_config("mmseg", theirs)
    with DefaultScope.overwrite_default_scope("mmseg"):
        ours, theirs = (describe(MODELS.build(cfg.model.decode_head)) for cfg in configs)
    assert ours == theirs
