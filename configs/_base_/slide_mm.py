custom_imports = dict(imports=["slide_mm"], allow_failed_imports=False)
