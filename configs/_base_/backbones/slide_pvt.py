embed_dims = [64, 128, 320, 512]
backbone = dict(type="SlidePVT", arch="tiny")
