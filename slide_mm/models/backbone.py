"""The skeleton of all hierarchical backbones."""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slide_mm.checkpoints import load_pretrained
from slide_mm.layers import Block, Mlp, SlideAttention
from slide_mm.layers.arguments import flag, odd_number, rate, refuse, whole_number
from slide_mm.models.arguments import (
    NUM_STAGES,
    check_arch,
    check_init_cfg,
    check_stages,
    is_pretrained,
)
from slide_mm.models.cpu import run_block


class Stage(nn.Module):
    """A downsampling and a row of blocks on channels-last tokens.

    Args:
        downsample: Lowers the resolution and widens the channels.
        blocks: Keep the shape.
        position: Adds position embeddings after the downsampling.
        norm: Applied after the last block, on the way to the next stage too.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        position: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.position = position or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()

    def forward(self, x: Tensor, with_cp: bool = False) -> Tensor:
        """Map (B, H, W, C) to (B, H', W', C'), recomputing blocks in backward if ``with_cp``."""
        x = self.position(self.downsample(x))
        for block in self.blocks:
            if with_cp and torch.is_grad_enabled():
                x = checkpoint(run_block, block, x, use_reentrant=False)
            else:
                x = run_block(block, x)
        return self.norm(x)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as most authors do; other layers stay as they are."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class HierarchicalBackbone(BaseModule):
    """Four stages at strides 4, 8, 16 and 32, of which some slide.

    A family says in ``arch_zoo`` how wide and deep it is, and in the ``build_*`` methods what its
    parts are. Stages after the last one of ``out_indices`` are not built.

    Args:
        arch: Name in ``arch_zoo``, or a dict with the keys of its entries, which hold one value
            for each stage.
        in_channels: Channels of the image.
        slide_stages: Stages, from 0, whose token mixer is Slide Attention. ``()`` is the original
            architecture of the family.
        kernel_size: Side of the neighbourhood of Slide Attention, odd.
        out_indices: Stages, from 0, whose features are returned.
        frozen_stages: -1 freezes nothing, 0 the patch embedding of the image, and n also the first
            n stages: no gradients, evaluation mode.
        drop_rate: Dropout probability in projections and MLPs.
        attn_drop_rate: Dropout probability of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        with_cp: Recompute blocks in the backward pass, for less memory and more time.
        init_cfg: MMEngine's initialisation config, such as
            ``dict(type='Pretrained', checkpoint=...)``, or a list of them.
        pretrained: Path of a checkpoint, as MMSegmentation's configs give it; the same as
            ``init_cfg=dict(type='Pretrained', checkpoint=pretrained)``.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    arch_zoo: ClassVar[dict[str, dict[str, Sequence]]]
    norm_eps: ClassVar[float] = 1e-5
    mlp_type: ClassVar[type[nn.Module]] = Mlp
    mlp_ratio: float = 4.0
    # See Block.
    layer_scale: float | None = None
    # The convolution that takes the image.
    first_conv: ClassVar[str] = "stages.0.downsample.proj"

    def __init__(
        self,
        arch: str | Mapping[str, Sequence],
        in_channels: int = 3,
        slide_stages: Sequence[int] = (0, 1),
        kernel_size: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(init_cfg=check_init_cfg(init_cfg, pretrained))
        self.arch = self.resolve_arch(arch)
        self.slide_stages = check_stages("slide_stages", slide_stages)
        self.out_indices = check_stages("out_indices", out_indices)
        if not self.out_indices:
            raise ValueError("out_indices is empty: name at least one stage from 0 to 3")
        self.in_channels = whole_number("in_channels", in_channels)
        self.kernel_size = odd_number("kernel_size", kernel_size)
        self.frozen_stages = whole_number(
            "frozen_stages", frozen_stages, -1, NUM_STAGES, "give a number from -1 to 4"
        )
        self.drop_rate = rate("drop_rate", drop_rate)
        self.attn_drop_rate = rate("attn_drop_rate", attn_drop_rate, below_one=True)
        self.drop_path_rate = rate("drop_path_rate", drop_path_rate)
        self.with_cp = flag("with_cp", with_cp)
        self.stages = nn.ModuleList(self.build_stage(i) for i in range(max(self.out_indices) + 1))
        self.out_norms = nn.ModuleDict(
            {str(i): self.build_out_norm(self.embed_dims[i]) for i in self.out_indices}
        )
        self.apply(self.init_layer)
        self.freeze()

    @property
    def embed_dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.arch["embed_dims"])

    @classmethod
    def resolve_arch(cls, arch: str | Mapping[str, Sequence]) -> dict[str, Sequence]:
        """Look an architecture up by name, or check a given one.

        Raises:
            ValueError: If the name is unknown, a key or a stage's value is missing, or a value is
                out of its range.
        """
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                known = ", ".join(cls.arch_zoo)
                raise ValueError(f"{cls.__name__} has no arch {arch!r}: choose one of {known}")
            return cls.arch_zoo[arch]
        if not isinstance(arch, Mapping):
            raise refuse("arch", arch, "give a name or a dict")
        keys = next(iter(cls.arch_zoo.values())).keys()
        if set(arch) != set(keys):
            raise ValueError(
                f"{cls.__name__}'s arch has the keys {sorted(map(str, arch))}: give {sorted(keys)}"
            )
        return check_arch(arch)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Say how deep a parameter is, for learning rates that decay with depth.

        The first downsampling has depth 0, and blocks count from 1 on through all stages. What
        else a stage has goes with its first block, or with its last one if it comes after that.

        Args:
            param_name: Name of a parameter in a whole model.
            prefix: What the names of the backbone's parameters begin with there.

        Returns:
            The depth, and the number of layers. Norms of outputs, and what isn't the backbone's,
            are of the last one.
        """
        depths = self.arch["depths"][: len(self.stages)]
        num_layers = sum(depths) + 2
        pattern = rf"{re.escape(prefix)}stages\.(\d+)\.(norm\.|blocks\.(\d+)\.)?"
        match = re.match(pattern, param_name)
        if match is None:
            return num_layers - 1, num_layers
        stage, part, block = int(match[1]), match[2], match[3]
        if stage == 0 and part is None:
            return 0, num_layers
        place = depths[stage] - 1 if part == "norm." else int(block or 0)
        return 1 + sum(depths[:stage]) + place, num_layers

    def build_stage(self, index: int) -> Stage:
        """Put the parts of one stage together."""
        depths = self.arch["depths"]
        drop_paths = torch.linspace(0, self.drop_path_rate, sum(depths), device="cpu").tolist()
        first = sum(depths[:index])
        blocks = [
            Block(
                self.embed_dims[index],
                self.build_mixer(index, depth),
                self.build_mlp(index),
                drop_path=drop_paths[first + depth],
                norm_eps=self.norm_eps,
                local=self.build_local(index),
                layer_scale=self.layer_scale,
            )
            for depth in range(depths[index])
        ]
        in_channels = self.in_channels if index == 0 else self.embed_dims[index - 1]
        return Stage(
            self.build_downsample(index, in_channels),
            blocks,
            position=self.build_position(index),
            norm=self.build_stage_norm(index),
        )

    def build_mixer(self, index: int, depth: int) -> nn.Module:
        """Slide Attention in the sliding stages, elsewhere what the family had."""
        options: dict[str, Any] = {
            "embed_dims": self.embed_dims[index],
            "num_heads": self.arch["num_heads"][index],
            "attn_drop": self.attn_drop_rate,
            "proj_drop": self.drop_rate,
        }
        if index in self.slide_stages:
            return SlideAttention(kernel_size=self.kernel_size, **options)
        return self.build_original_mixer(index, depth, options)

    @abstractmethod
    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        """The family's own token mixer for block ``depth`` of a stage."""

    @abstractmethod
    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        """The layer at the head of a stage."""

    def build_mlp(self, index: int) -> nn.Module:
        """The MLP of a stage's blocks: ``mlp_type``, wider inside by the arch's or one ratio."""
        embed_dims = self.embed_dims[index]
        name, ratio = "mlp_ratio", self.mlp_ratio
        if "mlp_ratios" in self.arch:
            name, ratio = "arch's mlp_ratios", self.arch["mlp_ratios"][index]
        hidden_dims = int(embed_dims * ratio)
        if hidden_dims < 1:
            raise refuse(
                name, ratio, f"give one that leaves channels in MLPs of width {embed_dims}"
            )
        return self.mlp_type(embed_dims, hidden_dims, drop=self.drop_rate)

    def build_local(self, index: int) -> nn.Module | None:
        """What tokens go through first in a stage's blocks, if the family has such a layer."""
        return None

    def build_position(self, index: int) -> nn.Module | None:
        """Position embedding of a stage, if the family has one."""
        return None

    def build_stage_norm(self, index: int) -> nn.Module | None:
        """Norm between a stage and the next, if the family has one."""
        return None

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        """Norm of returned features alone, if the family has one."""
        return nn.Identity()

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Initialise a linear layer or convolution, as the authors of PVT and PVTv2 do."""
        init_linear(module)
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``; without one, the constructor's values stay.

        As in MMEngine, of several configs those that are ``Pretrained`` come last. A checkpoint may
        be of any of :data:`slide_mm.checkpoints.SOURCES`.

        Raises:
            CheckpointError: If a ``Pretrained`` checkpoint is missing, damaged or of another
                architecture.
        """
        given, is_init = self.init_cfg, self.is_init
        configs = [given] if isinstance(given, Mapping) else given or []
        pretrained = [config for config in configs if is_pretrained(config)]
        self.init_cfg = [config for config in configs if not is_pretrained(config)]
        if self.init_cfg or not pretrained:
            super().init_weights()
        self.init_cfg = given
        if not is_init:
            for config in pretrained:
                load_pretrained(self, config["checkpoint"], config.get("prefix"))
        self.is_init = True

    def freeze(self) -> None:
        """Freeze what ``frozen_stages`` names."""
        if self.frozen_stages < 0:
            return
        frozen = [self.stages[0].downsample, *self.stages[: self.frozen_stages]]
        frozen += [norm for i, norm in self.out_norms.items() if int(i) < self.frozen_stages]
        for module in frozen:
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "HierarchicalBackbone":
        """Switch between training and evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        self.freeze()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of an image.

        Args:
            x: Images (B, in_channels, H, W), of any size from 1 x 1.

        Returns:
            For each of ``out_indices``, ascending, (B, C_i, ceil(H / s), ceil(W / s)), with s the
            stage's stride.

        Raises:
            ValueError: If ``x`` is not of that shape.
        """
        tokens = self.forward_stages(x, self.out_indices)
        return tuple(
            self.out_norms[str(index)](stage_tokens).permute(0, 3, 1, 2).contiguous()
            for index, stage_tokens in zip(self.out_indices, tokens, strict=True)
        )

    def forward_stages(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Compute the tokens (B, H', W', C_i) that stages hand on, before the norms of outputs.

        Args:
            x: See :meth:`forward`.
            indices: Stages, from 0. Those after the last of them don't run.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: give images as (B, {self.in_channels}, H, W)"
            )
        # In channels-last memory, so that not even the first convolution leaves a copy to be made.
        x = x.permute(0, 2, 3, 1).contiguous()
        tokens = []
        for index in range(max(indices) + 1):
            x = self.stages[index](x, self.with_cp)
            if index in indices:
                tokens.append(x)
        return tokens
