"""Models out of PyTorch: one exported program, written for onnxruntime, OpenVINO or AOTInductor."""

from slide_mm.export.files import export_model

__all__ = ["export_model"]
