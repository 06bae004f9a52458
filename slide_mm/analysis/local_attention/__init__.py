"""Local attention seen: cost, equivariance, attention weights, shifts and receptive fields."""

from slide_mm.analysis.local_attention.attention import check_attention
from slide_mm.analysis.local_attention.cost import check_cost
from slide_mm.analysis.local_attention.deformed_shifts import check_deformed_shifts
from slide_mm.analysis.local_attention.deployment import check_deployment
from slide_mm.analysis.local_attention.equivariance import check_equivariance
from slide_mm.analysis.local_attention.receptive_field import check_receptive_field
from slide_mm.analysis.local_attention.report import render_html
from slide_mm.analysis.local_attention.section import Photograph, Section, salient_points

__all__ = [
    "Photograph",
    "Section",
    "check_attention",
    "check_cost",
    "check_deformed_shifts",
    "check_deployment",
    "check_equivariance",
    "check_receptive_field",
    "render_html",
    "salient_points",
]
