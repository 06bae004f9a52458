# Mask2Former for semantic segmentation, for ADE20K's 150 classes. Its parts are MMDetection's, and
# what isn't said is as they have it.
_base_ = "./segmentor.py"
custom_imports = dict(imports=["mmdet.models", "slide_mm"], allow_failed_imports=False)
attention = dict(embed_dims=256, num_heads=8, batch_first=True, dropout_layer=None)
model = dict(
    decode_head=dict(
        type="Mask2FormerHead",
        feat_channels=256,
        out_channels=256,
        num_classes=150,
        num_queries=100,
        align_corners=False,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(self_attn_cfg=dict(num_levels=3, dropout=0.0, batch_first=True)),
            ),
        ),
        transformer_decoder=dict(
            num_layers=9,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(feedforward_channels=2048),
            ),
        ),
        # Queries may be of no class: the last weight.
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss", loss_weight=2.0, class_weight=[1.0] * 150 + [0.1]
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(type="mmdet.DiceLoss", naive_dice=True, eps=1.0, loss_weight=5.0),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
)
