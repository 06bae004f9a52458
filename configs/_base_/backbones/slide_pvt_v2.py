embed_dims = [32, 64, 160, 256]
backbone = dict(type="SlidePVTv2", arch="b0")
