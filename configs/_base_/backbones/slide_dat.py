embed_dims = [96, 192, 384, 768]
backbone = dict(type="SlideDAT", arch="tiny")
