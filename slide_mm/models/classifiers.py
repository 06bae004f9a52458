"""Image classifiers on the backbones, as entry points of timm.

Importing the package registers one for every arch: ``timm.create_model('slide_swin_tiny')``,
``'slide_pvt_small'``, ``'slide_pvt_v2_b2'`` and so on; ``timm.list_models('slide_*')`` lists them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from slide_mm.layers.arguments import rate, whole_number
from slide_mm.models.arguments import NUM_STAGES
from slide_mm.models.backbone import HierarchicalBackbone

# timm looks for these two names, and adds its entry points to the first.
__all__ = ["Classifier"]
default_cfgs = {}

_MAX_CLASSES = 1 << 24


class Classifier(HierarchicalBackbone):
    """A backbone whose last features are averaged and classified, with timm's interface.

    A family's classifier inherits from this and from its backbone; see :func:`make_classifier`.
    What is averaged is normed: where the family norms neither stages nor features, by one more
    layer norm. Weights keep the backbone's names, and those of the classifier begin with ``head.``:
    a backbone loads the weights of its classifier as they are.

    Args:
        arch: See the family's backbone.
        num_classes: Number of classes; 0 returns the averaged features.
        in_chans: Channels of the image.
        global_pool: Pooling of the last features, one of timm's; ``''`` leaves maps.
        drop_rate: Dropout probability before the classifier.
        proj_drop_rate: Dropout probability in projections and MLPs.
        img_size: Taken from callers who give it to every model, and not used: images may have any
            size.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        arch: str | dict[str, Sequence],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        img_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        last = NUM_STAGES - 1
        whole_number("in_chans", in_chans)
        rate("proj_drop_rate", proj_drop_rate)
        super().__init__(
            arch, in_channels=in_chans, drop_rate=proj_drop_rate, out_indices=(last,), **kwargs
        )
        num_classes = whole_number("num_classes", num_classes, 0, _MAX_CLASSES)
        drop_rate = rate("drop_rate", drop_rate)
        self.num_features = self.embed_dims[last]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head.apply(self.init_layer)
        self.num_classes = num_classes
        self.feature_info = [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i, channels in enumerate(self.embed_dims)
        ]

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        norm = super().build_out_norm(embed_dims)
        is_missing = all(isinstance(x, nn.Identity) for x in (norm, self.stages[-1].norm))
        return nn.LayerNorm(embed_dims, eps=self.norm_eps) if is_missing else norm

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier sees."""
        return self.num_features * self.head.global_pool.feat_mult()

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, an identity without classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer, and the pooling if one is given.

        Args:
            num_classes: See the constructor.
            global_pool: See the constructor. Default: the pooling stays.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, for less memory and more time, or don't."""
        self.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Names of position tables, which timm's optimizers then don't decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters: by stage if ``coarse``, else by block."""
        stem = r"^stages\.0\.(?:downsample|position)"
        if coarse:
            return {"stem": stem, "blocks": r"^stages\.(\d+)"}
        norms = [
            (rf"^stages\.({stage})\.norm", (depth - 1,))
            for stage, depth in enumerate(self.arch["depths"])
        ]
        first = (r"^stages\.(\d+)\.(?:downsample|position)", (0,))
        return {"stem": stem, "blocks": [(r"^stages\.(\d+)\.blocks\.(\d+)", None), first, *norms]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to the last features (B, C, H / 32, W / 32)."""
        return super().forward(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map last features to logits (B, num_classes), or to what the linear layer sees."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W), of any size from 1 x 1, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the features of several stages, as timm's models do for ``features_only``.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages, from 0, negative ones from the end; or how many of the last ones.
                Default: all.
            norm: Normalise the features of the last stage. Those of earlier ones never are.
            stop_early: Don't compute stages after the last of ``indices``.
            output_fmt: ``'NCHW'``.
            intermediates_only: Don't return the last features.

        Returns:
            Last features, and for each of ``indices``, ascending, (B, C_i, H_i, W_i).

        Raises:
            ValueError: If ``output_fmt`` is another one.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}: features come as 'NCHW'")
        taken, _ = feature_take_indices(len(self.stages), indices, as_set=True)
        needed = taken if stop_early or intermediates_only else {*taken, len(self.stages) - 1}
        tokens = dict(zip(sorted(needed), self.forward_stages(x, needed), strict=True))
        end = max(needed)
        last = self.out_norms[str(end)](tokens[end]) if end in self.out_indices else tokens[end]
        if norm:
            tokens[end] = last
        maps = [tokens[i].permute(0, 3, 1, 2).contiguous() for i in sorted(taken)]
        return maps if intermediates_only else (last.permute(0, 3, 1, 2).contiguous(), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what :meth:`forward_intermediates` doesn't need.

        Args:
            indices: See :meth:`forward_intermediates`.
            prune_norm: Remove the norm after the last stage.
            prune_head: Remove the classifier. It goes with the last stage in any case.

        Returns:
            The stages, from 0.
        """
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.out_norms = nn.ModuleDict({str(last): nn.Identity()})
            self.out_indices = (last,)
        if shortened:
            self.num_features = self.embed_dims[last]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken


def make_classifier(backbone: type[HierarchicalBackbone], prefix: str) -> type[Classifier]:
    """Make the classifier of a family, and an entry point of timm for each of its archs.

    Args:
        backbone: Class of the family's backbone.
        prefix: What the names of the entry points begin with, such as ``'slide_swin'``.

    Returns:
        A class that is found here by the backbone's name and ``Classifier``.
    """
    family = f"{backbone.__name__}Classifier"
    attributes = {"__module__": __name__, "__doc__": f"Classifier on {backbone.__name__}."}
    classifier = globals()[family] = type(family, (Classifier, backbone), attributes)
    __all__.append(family)
    for arch in backbone.arch_zoo:
        name = f"{prefix}_{arch}"
        globals()[name] = _make_entry_point(name, classifier, arch)
    return classifier


def _make_entry_point(name: str, family: type[Classifier], arch: str) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            family,
            name,
            pretrained,
            feature_cfg={"out_indices": tuple(range(NUM_STAGES)), "feature_cls": "getter"},
            **{"arch": arch, **kwargs},
        )

    entry_point.__name__ = entry_point.__qualname__ = name
    # There are no pretrained weights yet.
    cfg = {
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "first_conv": family.first_conv,
        "classifier": "head.fc",
    }
    default_cfgs.update(generate_default_cfgs({name: cfg}))
    return register_model(entry_point)
