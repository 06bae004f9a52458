embed_dims = [64, 128, 256, 512]
backbone = dict(type="SlideNAT", arch="mini")
