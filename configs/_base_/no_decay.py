# What shouldn't decay, in any family: norms, tables of positions, biases of taps. They are for
# `paramwise_cfg.custom_keys`. MMEngine takes the longest key that a parameter's name has in it, and
# none of its other rules (`norm_decay_mult`) then: these are longer than `backbone`, which slows a
# backbone down in recipes such as DINO's, and so come before it.
no_decay = {
    key: dict(decay_mult=0.0)
    for key in (
        *("relative_position_bias_table", "position.table", "shift_bias"),
        *(".norm1.weight", ".norm1.bias", ".norm2.weight", ".norm2.bias"),
        *("downsample.norm", "downsample.0.norm", "downsample.1.norm"),
        *("mixer.norm", "mixer.offset_norm", "backbone.out_norms"),
        *(f"backbone.stages.{stage}.norm" for stage in range(4)),
    )
}
# The same where the backbone learns at a tenth of the rate.
slow_no_decay = {key: dict(lr_mult=0.1, **rule) for key, rule in no_decay.items()}
