"""Small models in the layouts of others, and what tells their state dicts apart."""

import math
import re

import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import nn

from tests.needs import mmdet_backbone

DIMS, HEADS = (16, 32, 64, 128), (2, 4, 4, 8)
SWIN = {"embed_dims": DIMS, "depths": (2, 2, 2, 2), "num_heads": HEADS}
PVT = {"embed_dims": (8, 16, 40, 64), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 5, 8)}
PVT |= {"mlp_ratios": (8, 8, 4, 4), "sr_ratios": (8, 4, 2, 1)}


class PublishedSlideAttention(nn.Module):
    """Slide Attention as its authors' paper and code have it, one head after another.

    The projection gives query, key and value of head 0, then those of head 1, and so on. One
    convolution shifts and is not trained, a second one is, and both have a bias.
    """

    def __init__(self, dims, num_heads, kernel_size=3):
        super().__init__()
        self.num_heads, self.taps = num_heads, kernel_size**2
        head_dims = dims // num_heads
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)
        for name in ("dep_conv", "dep_conv1"):
            convolution = nn.Conv2d(
                head_dims, head_dims * self.taps, kernel_size, padding="same", groups=head_dims
            )
            setattr(self, name, convolution)
        shift = torch.eye(self.taps).view(self.taps, 1, kernel_size, kernel_size)
        self.dep_conv.weight = nn.Parameter(shift.repeat(head_dims, 1, 1, 1), requires_grad=False)
        table = torch.randn(1, num_heads, 1, self.taps, 1, 1)
        self.relative_position_bias_table = nn.Parameter(table)

    def forward(self, x, mask=None):
        """Attend on (B, N, C), N the tokens of a square map."""
        side = math.isqrt(x.shape[1])
        heads = self.qkv(x).transpose(1, 2).unflatten(2, (side, side)).chunk(self.num_heads, dim=1)
        tables = self.relative_position_bias_table.unbind(1)
        outputs = [self.attend(*pair) for pair in zip(heads, tables, strict=True)]
        return self.proj(torch.cat(outputs, dim=1).flatten(2).transpose(1, 2))

    def attend(self, head, table):
        query, *key_value = head.chunk(3, dim=1)
        key, value = (
            (self.dep_conv(x) + self.dep_conv1(x)).unflatten(1, (-1, self.taps)) for x in key_value
        )
        scaled = query.unsqueeze(2) * query.shape[1] ** -0.5
        weights = (scaled * (key + table)).sum(1, keepdim=True).softmax(dim=2)
        return (weights * value).sum(2)


def timm_swin(**options):
    options = {"img_size": 64, "window_size": 7, "drop_path_rate": 0.0, **options}
    return TimmSwin(
        embed_dim=DIMS[0], depths=(2, 2, 2, 2), num_heads=HEADS, num_classes=5, **options
    )


def authors_slide_swin():
    """Slide-Swin for 64 x 64 images as its authors make it: windows that cover every map."""
    model = timm_swin(window_size=16)
    for stage in range(2):
        for block in model.layers[stage].blocks:
            block.attn = PublishedSlideAttention(DIMS[stage], HEADS[stage])
    return model


def in_microsofts_names(model):
    """State dict of a Swin of timm as Microsoft names it: patch merging ends a stage."""
    state_dict = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(
            r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
        )
        state_dict[name.replace("head.fc", "head")] = tensor
    state_dict["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    state_dict["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49).long()
    return state_dict


def mmdet_swin():
    return mmdet_backbone("SwinTransformer")(
        embed_dims=DIMS[0], depths=SWIN["depths"], num_heads=HEADS
    )


def timm_pvt_v2():
    widths = {key: PVT[key] for key in ("embed_dims", "depths")}
    return timm.create_model("pvt_v2_b0", **widths)


def mmdet_pvt(family="PyramidVisionTransformer", **options):
    return mmdet_backbone(family)(
        embed_dims=8, num_layers=PVT["depths"], num_heads=list(PVT["num_heads"]), **options
    )


def in_pvts_names(model, version):
    """State dict of MMDetection's PVT or PVTv2 as its authors name it."""
    state_dict = {}
    fc2 = {1: "3", 2: "4"}[version]
    for name, tensor in model.state_dict().items():
        *_, stage, part, rest = name.split(".", maxsplit=3)
        number = int(stage) + 1
        if part == "0":
            state_dict[f"patch_embed{number}." + rest.replace("projection", "proj")] = tensor
        elif part == "2":
            state_dict[f"norm{number}.{rest}"] = tensor
        elif rest == "0.pos_embed":
            state_dict[f"pos_embed{number}"] = tensor
        else:
            block, rest = rest.split(".", maxsplit=1)
            prefix = f"block{number}.{int(block) - (version == 1)}."
            if "in_proj_" in rest:
                kind, third = rest.split("in_proj_")[1], len(tensor) // 3
                state_dict[f"{prefix}attn.q.{kind}"] = tensor[:third]
                state_dict[f"{prefix}attn.kv.{kind}"] = tensor[third:]
                continue
            rest = rest.replace("attn.attn.out_proj", "attn.proj").replace(
                "ffn.layers.0", "mlp.fc1"
            )
            rest = rest.replace("ffn.layers.1", "mlp.dwconv.dwconv")
            rest = rest.replace(f"ffn.layers.{fc2}", "mlp.fc2")
            is_pointwise = "mlp.fc" in rest and tensor.ndim == 4
            state_dict[prefix + rest] = tensor.flatten(1) if is_pointwise else tensor
    if version == 1:
        token = state_dict["pos_embed4"][:, :1]
        state_dict["pos_embed4"] = torch.cat([token + 1, state_dict["pos_embed4"]], dim=1)
        state_dict |= {"cls_token": token, "norm.weight": token[0, 0], "norm.bias": token[0, 0]}
    return state_dict | {"head.weight": torch.randn(5, 64), "head.bias": torch.randn(5)}
