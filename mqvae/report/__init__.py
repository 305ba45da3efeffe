"""Runs -> one self-contained HTML page; only the codebooks of finished runs need torch."""

from mqvae.report.page import write_report as write_report
from mqvae.report.watching import watch as watch
